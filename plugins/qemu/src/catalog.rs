//! Which images there are: those that are bundled, and those in the settings.
//!
//! Every image is named by the digest of its bytes, so that what boots is what was published, wherever it came from.
//! The bundled ones are the distributions' own cloud images at addresses that do not change. Pure: `images.rs` fetches
//! what is named here, `lib.rs` lists it.

use std::collections::BTreeMap;

use crate::settings::{DirectBootEntry, ImageEntry};

/// All known images, by alias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalog(BTreeMap<String, Image>);

/// One image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// For people.
    pub description: String,
    pub disk: Blob,
    /// An account beside root that the keys log in to.
    pub account: Option<String>,
    pub direct_boot: Option<DirectBoot>,
}

/// A kernel that QEMU starts itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectBoot {
    pub kernel: Blob,
    pub initrd: Blob,
    /// The kernel's command line.
    pub append: String,
}

/// Bytes with a known digest, and where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    pub source: Source,
    pub digest: Digest,
}

/// Where bytes are fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An `https://` address.
    Url(String),
    /// An absolute path on this machine.
    File(String),
}

/// Lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Digest {
    Sha256(String),
    Sha512(String),
}

impl Digest {
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::Sha512(hex) => hex,
        }
    }

    fn sha256(hex: &str) -> Result<Self, String> {
        checked_hex(hex, 64).map(Self::Sha256)
    }

    fn sha512(hex: &str) -> Result<Self, String> {
        checked_hex(hex, 128).map(Self::Sha512)
    }
}

fn checked_hex(text: &str, digits: usize) -> Result<String, String> {
    if text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!("`{text}` is no digest of {digits} hexadecimal digits"))
    }
}

/// An image that comes with the plugin.
struct Bundled {
    aliases: [&'static str; 2],
    description: &'static str,
    /// Address and digest per architecture.
    x86_64: (&'static str, &'static str),
    aarch64: (&'static str, &'static str),
}

/// Dated builds, because their bytes never change: newer ones can be set under the same alias. The digests are the
/// publishers' (Ubuntu publishes SHA-256, Debian SHA-512).
const BUNDLED: [Bundled; 3] = [
    Bundled {
        aliases: ["24.04", "noble"],
        description: "Ubuntu 24.04 LTS",
        x86_64: (
            "https://cloud-images.ubuntu.com/releases/noble/release-20260911/ubuntu-24.04-server-cloudimg-amd64.img",
            "612b2c0cc1bc413a6cb8c38fd611794caf0f2b436c50013d8b3794db12ad7354",
        ),
        aarch64: (
            "https://cloud-images.ubuntu.com/releases/noble/release-20260911/ubuntu-24.04-server-cloudimg-arm64.img",
            "7b682958a67ff5de068e36de6af8b75fa645d296af5a70d6500527f6a33781db",
        ),
    },
    Bundled {
        aliases: ["22.04", "jammy"],
        description: "Ubuntu 22.04 LTS",
        x86_64: (
            "https://cloud-images.ubuntu.com/releases/jammy/release-20260913/ubuntu-22.04-server-cloudimg-amd64.img",
            "9144540e8af7637d258b50dbabe82ce1aa6752c9574fedfb048270da0e087899",
        ),
        aarch64: (
            "https://cloud-images.ubuntu.com/releases/jammy/release-20260913/ubuntu-22.04-server-cloudimg-arm64.img",
            "ab5fcc80611a98bf999018045119d87b3a0e7c78f3b43b254b93d5c22bae3ff6",
        ),
    },
    Bundled {
        aliases: ["debian-12", "bookworm"],
        description: "Debian 12",
        x86_64: (
            "https://cloud.debian.org/images/cloud/bookworm/20260923-2610/debian-12-genericcloud-amd64-20260923-2610.qcow2",
            "3d94c9dd66d8a283fde060b8810373b7ae04038b956ee00d553d1ae564f6fbdeaa2fd6e7404e87e53348b5a9509170f3ea7c0731ba737590c5c4cb8d559a47f8",
        ),
        aarch64: (
            "https://cloud.debian.org/images/cloud/bookworm/20260923-2610/debian-12-genericcloud-arm64-20260923-2610.qcow2",
            "89a752d5c7d8e88bee39a57d88d496cca574f7d1e8df5df7a169825435f99feb11ed13ab27ec7bee96fe1584be4ff9479358fbca6cc859efa109f4aba18724c8",
        ),
    },
];

impl Catalog {
    /// The bundled images for an architecture, and those of the settings, which win over them.
    ///
    /// # Errors
    /// A text that names the alias and says what is wrong with its entry.
    pub fn new(architecture: &str, entries: &BTreeMap<String, ImageEntry>) -> Result<Self, String> {
        let mut images = BTreeMap::new();
        for bundled in &BUNDLED {
            let (url, hex) = match architecture {
                "x86_64" => bundled.x86_64,
                "aarch64" => bundled.aarch64,
                _ => continue,
            };
            let digest = if hex.len() == 64 { Digest::sha256(hex)? } else { Digest::sha512(hex)? };
            let image = Image {
                description: bundled.description.to_owned(),
                disk: Blob { source: Source::Url(url.to_owned()), digest },
                account: None,
                direct_boot: None,
            };
            for alias in bundled.aliases {
                images.insert(alias.to_owned(), image.clone());
            }
        }
        for (alias, entry) in entries {
            let image = image(entry)
                .map_err(|wrong| format!("the image `{alias}` in the settings: {wrong}"))?;
            images.insert(alias.clone(), image);
        }
        Ok(Self(images))
    }

    /// The image of an alias.
    ///
    /// # Errors
    /// A text that names the aliases there are.
    pub fn find(&self, alias: &str) -> Result<&Image, String> {
        self.0.get(alias).ok_or_else(|| {
            let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
            format!("there is no image `{alias}`; known are {}", known.join(", "))
        })
    }

    /// Aliases and images, sorted by alias.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Image)> {
        self.0.iter().map(|(alias, image)| (alias.as_str(), image))
    }
}

fn image(entry: &ImageEntry) -> Result<Image, String> {
    let source = source(&entry.source)?;
    let digest = match (&entry.sha256, &entry.sha512) {
        (Some(hex), None) => Digest::sha256(hex)?,
        (None, Some(hex)) => Digest::sha512(hex)?,
        _ => return Err("it needs exactly one of `sha256` and `sha512`".to_owned()),
    };
    if matches!((&source, &digest), (Source::File(_), Digest::Sha512(_))) {
        return Err("a file of this machine is checked by `sha256`".to_owned());
    }
    Ok(Image {
        description: entry.description.clone(),
        disk: Blob { source, digest },
        account: entry.user.clone().filter(|user| user != "root"),
        direct_boot: entry.direct_boot.as_ref().map(direct_boot).transpose()?,
    })
}

fn direct_boot(entry: &DirectBootEntry) -> Result<DirectBoot, String> {
    let blob = |at: &str, hex: &str| {
        Ok::<_, String>(Blob { source: source(at)?, digest: Digest::sha256(hex)? })
    };
    Ok(DirectBoot {
        kernel: blob(&entry.kernel, &entry.kernel_sha256)?,
        initrd: blob(&entry.initrd, &entry.initrd_sha256)?,
        append: entry.append.clone(),
    })
}

fn source(text: &str) -> Result<Source, String> {
    if text.starts_with("https://") {
        Ok(Source::Url(text.to_owned()))
    } else if text.starts_with('/') {
        Ok(Source::File(text.to_owned()))
    } else {
        Err(format!("`{text}` is neither an https:// address nor an absolute path"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn entry(source: &str) -> ImageEntry {
        ImageEntry {
            description: "a test".into(),
            source: source.into(),
            sha256: Some("AB".repeat(32)),
            sha512: None,
            user: None,
            direct_boot: None,
        }
    }

    fn with(entry: ImageEntry) -> Result<Catalog, String> {
        Catalog::new("x86_64", &BTreeMap::from([("mine".to_owned(), entry)]))
    }

    #[test]
    fn the_bundled_images_are_there_for_both_architectures_under_both_their_names() {
        for architecture in ["x86_64", "aarch64"] {
            let catalog = Catalog::new(architecture, &BTreeMap::new()).unwrap();
            for (one, other) in [("24.04", "noble"), ("22.04", "jammy"), ("debian-12", "bookworm")]
            {
                assert_eq!(catalog.find(one).unwrap(), catalog.find(other).unwrap());
            }
        }
    }

    #[test]
    fn the_settings_add_images_and_replace_bundled_ones() {
        let entries = BTreeMap::from([
            ("mine".to_owned(), entry("/images/mine.qcow2")),
            ("24.04".to_owned(), entry("https://example.org/noble.img")),
        ]);
        let catalog = Catalog::new("x86_64", &entries).unwrap();
        let expected = Digest::Sha256("ab".repeat(32));
        assert_eq!(catalog.find("mine").unwrap().disk.digest, expected);
        assert_eq!(catalog.find("24.04").unwrap().disk.digest, expected);
        assert_ne!(catalog.find("noble").unwrap().disk.digest, expected);
    }

    #[test]
    fn an_unknown_alias_is_refused_with_those_that_are_known() {
        let error = with(entry("/x")).unwrap().find("windows").unwrap_err();
        for alias in ["windows", "24.04", "jammy", "debian-12", "mine"] {
            assert!(error.contains(alias), "{error}");
        }
    }

    #[test]
    fn an_image_whose_bytes_cannot_be_checked_is_refused() {
        let none = ImageEntry { sha256: None, ..entry("/x") };
        let both = ImageEntry { sha512: Some("0".repeat(128)), ..entry("https://x/") };
        let short = ImageEntry { sha256: Some("abc".into()), ..entry("/x") };
        let file_by_sha512 =
            ImageEntry { sha256: None, sha512: Some("0".repeat(128)), ..entry("/x") };
        for wrong in [none, both, short, file_by_sha512] {
            assert!(with(wrong).unwrap_err().contains("`mine`"));
        }
    }

    #[test]
    fn an_image_comes_over_https_or_from_an_absolute_path_and_from_nowhere_else() {
        for wrong in ["http://example.org/x", "relative/path", "ftp://x/y", ""] {
            assert!(with(entry(wrong)).is_err(), "{wrong}");
        }
    }
}
