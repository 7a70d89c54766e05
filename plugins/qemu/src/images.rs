//! Fetching images: once each, checked, and shared by all machines that boot from them.
//!
//! `images/<digest>` holds the bytes with that digest and is never changed; machines write to a disk of their own above it.
//! Downloads go on where they stopped, a file gets its name only when its digest is right, and one that was damaged later is
//! fetched again: the provider sees to all three.
//! `machine.rs` calls this while it makes a machine.

use core::time::Duration;

use golem_provider_sdk::{
    Error, Result, files,
    http::{self, Checksum},
    process::Command,
    progress,
};
use serde::Deserialize;

use crate::{
    catalog::{Blob, Digest, Image, Source},
    record::{Boot, DirectKernel},
};

/// Fetches what is missing of an image.
pub fn fetch(image: &Image) -> Result<Boot> {
    let disk = fetch_blob(&image.disk, "fetching the image")?;
    let direct = image
        .direct_boot
        .as_ref()
        .map(|direct| {
            Ok::<_, Error>(DirectKernel {
                kernel: fetch_blob(&direct.kernel, "fetching the kernel")?,
                initrd: fetch_blob(&direct.initrd, "fetching the kernel")?,
                append: direct.append.clone(),
            })
        })
        .transpose()?;
    Ok(Boot { image: disk, direct, account: image.account.clone() })
}

/// Makes sure that what a machine boots from is as it was fetched, if the catalog still has it.
pub fn mend(image: &Image, boot: &Boot) -> Result<()> {
    if path_of(&image.disk) == boot.image {
        fetch_blob(&image.disk, "fetching the image again")?;
    }
    if let (Some(now), Some(then)) = (&image.direct_boot, &boot.direct) {
        for (blob, path) in [(&now.kernel, &then.kernel), (&now.initrd, &then.initrd)] {
            if path_of(blob) == *path {
                fetch_blob(blob, "fetching the kernel again")?;
            }
        }
    }
    Ok(())
}

fn path_of(blob: &Blob) -> String {
    format!("images/{}", blob.digest.hex())
}

/// Answers the path in the plugin's directory.
fn fetch_blob(blob: &Blob, stage: &str) -> Result<String> {
    let path = path_of(blob);
    if !files::exists(&path)? {
        progress::stage(stage);
    }
    // Of one that is there the provider makes sure that it is still what was fetched.
    match (&blob.source, &blob.digest) {
        (Source::Url(url), digest) => {
            let checksum = match digest {
                Digest::Sha256(hex) => Checksum::Sha256(hex.clone()),
                Digest::Sha512(hex) => Checksum::Sha512(hex.clone()),
            };
            http::download(url, &path, &checksum).map_err(|error| error.context(stage))?;
        }
        (Source::File(file), digest) => {
            files::import_file(file, &path, digest.hex()).map_err(|error| error.context(stage))?;
        }
    }
    Ok(path)
}

/// What QEMU says of a disk image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    format: String,
    virtual_size: u64,
    backing_filename: Option<String>,
}

/// Makes a machine's own disk above an image, of the given size: nothing is copied. Paths are in the plugin's directory.
///
/// # Errors
/// [`Error::InvalidArgument`] if the image is larger than that.
pub fn make_disk(image: &str, disk: &str, unfinished: &str, size_mib: u64) -> Result<()> {
    let image = files::host_path(image)?;
    let output =
        Command::new("qemu-img").args(["info", "--output=json", image.as_str()]).run_checked()?;
    let info: Info = serde_json::from_slice(&output.stdout)
        .map_err(|error| Error::Internal(format!("qemu-img info {image}: {error}")))?;
    let format = usable(&info, size_mib).map_err(Error::InvalidArgument)?;
    // A disk half made by an earlier call is made anew.
    files::remove(unfinished)?;
    Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", format, "-b", image.as_str()])
        .args([files::host_path(unfinished)?, format!("{size_mib}M")])
        .timeout(Duration::from_secs(120))
        .run_checked()?;
    files::rename(unfinished, disk)
}

/// The image's format, if machines of that size can be made from it.
fn usable(info: &Info, size_mib: u64) -> core::result::Result<&str, String> {
    if !matches!(info.format.as_str(), "qcow2" | "raw") {
        return Err(format!("the image has the format {}; qcow2 and raw are known", info.format));
    }
    if let Some(file) = &info.backing_filename {
        return Err(format!("the image needs another file, {file}; use one that stands alone"));
    }
    let needed_mib = info.virtual_size.div_ceil(1 << 20);
    if needed_mib > size_mib {
        return Err(format!(
            "the image needs {needed_mib} MiB of storage, and {size_mib} MiB were asked for"
        ));
    }
    Ok(&info.format)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn info(json: &str) -> Info {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_disk_smaller_than_its_image_is_refused_with_both_sizes() {
        let image = info(r#"{"format":"qcow2","virtual-size":3758096384,"actual-size":1}"#);
        assert_eq!(usable(&image, 3584), Ok("qcow2"));
        let error = usable(&image, 3583).unwrap_err();
        assert!(error.contains("3584") && error.contains("3583"), "{error}");
    }

    #[test]
    fn an_image_that_would_read_another_file_of_the_machine_is_refused() {
        let image = info(r#"{"format":"qcow2","virtual-size":1,"backing-filename":"/etc/shadow"}"#);
        assert!(usable(&image, 10).unwrap_err().contains("/etc/shadow"));
        assert!(usable(&info(r#"{"format":"vmdk","virtual-size":1}"#), 10).is_err());
    }
}
