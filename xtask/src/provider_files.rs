//! What is written into a provider's data directory: the local image, in the QEMU plugin's own
//! configuration file. Whatever else an operator wrote there stays as it is.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use toml_edit::{Array, DocumentMut, Item, Table, Value};

/// Makes the provider's data directory, if it is not there, closed to other users as the provider
/// wants it.
///
/// # Errors
/// When it cannot be made.
pub fn make_data_directory(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("making the data directory {}", path.display()))
}

/// Offers the image of `catalog` to the provider whose plugin configuration is `config`, and lets
/// the plugin read the image's files. Writes nothing when that is so already.
///
/// # Errors
/// When either file cannot be read or is not what it should be; `config` is untouched then.
pub fn offer_image(config: &Path, catalog: &Path, alias: &str) -> Result<()> {
    let present = match fs::read_to_string(config) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", config.display())),
    };
    let catalog_text =
        fs::read_to_string(catalog).with_context(|| format!("reading {}", catalog.display()))?;
    let directory = catalog.parent().context("a catalog lies in a directory")?;
    let granted = format!("{}/", directory.display());
    let wanted = with_image(&present, &catalog_text, alias, &granted)
        .with_context(|| format!("adding the image {alias} to {}", config.display()))?;
    if wanted == present {
        return Ok(());
    }
    if let Some(parent) = config.parent() {
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    }
    let partial = config.with_extension("toml.partial");
    fs::write(&partial, wanted).with_context(|| format!("writing {}", partial.display()))?;
    fs::rename(&partial, config).with_context(|| format!("writing {}", config.display()))
}

/// The configuration `present` with the image `alias` of `catalog` in `settings.images`, and
/// `granted` among `grants.files`.
fn with_image(present: &str, catalog: &str, alias: &str, granted: &str) -> Result<String> {
    let mut config: DocumentMut = present.parse().context("it is not valid TOML")?;
    let catalog: DocumentMut = catalog.parse().context("the image's catalog is not valid TOML")?;
    let Some(image) =
        catalog.get("images").and_then(|images| images.get(alias)).and_then(Item::as_table)
    else {
        bail!("the image's catalog has no image {alias}");
    };

    let images = table(table(config.as_table_mut(), "settings", false)?, "images", true)?;
    // An entry that says the same is left alone, with what the operator wrote around it.
    if !images.get(alias).and_then(Item::as_table).is_some_and(|entry| says_the_same(entry, image))
    {
        let mut entry = image.clone();
        entry.set_position(None);
        entry
            .decor_mut()
            .set_prefix("\n# Written by `cargo xtask run`, and renewed with the image.\n");
        images.insert(alias, Item::Table(entry));
    }

    let grants = table(config.as_table_mut(), "grants", false)?;
    let files = grants.entry("files").or_insert_with(|| Item::Value(Value::Array(Array::new())));
    let Some(files) = files.as_array_mut() else { bail!("grants.files is not a list") };
    if !files.iter().any(|file| file.as_str() == Some(granted)) {
        files.push(granted);
    }
    Ok(config.to_string())
}

/// The table `name` in `parent`, made if it is not there.
fn table<'a>(parent: &'a mut Table, name: &str, implicit: bool) -> Result<&'a mut Table> {
    let item = parent.entry(name).or_insert_with(|| {
        let mut table = Table::new();
        table.set_implicit(implicit);
        Item::Table(table)
    });
    item.as_table_mut().with_context(|| format!("{name} is not a table with a header of its own"))
}

/// Whether two tables have the same keys and values, whatever their layout.
fn says_the_same(one: &Table, other: &Table) -> bool {
    one.len() == other.len()
        && one.iter().all(|(key, item)| match (item, other.get(key)) {
            (Item::Table(item), Some(Item::Table(other))) => says_the_same(item, other),
            (Item::Value(item), Some(Item::Value(other))) => {
                item.as_str().is_some() && item.as_str() == other.as_str()
            }
            _ => false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CATALOG: &str = r#"[images."debian-12"]
description = "Debian 12"
source = "/images/disk.qcow2"
sha256 = "aa"
[images."debian-12".direct-boot]
kernel = "/images/vmlinux"
"#;

    fn parsed(text: &str) -> DocumentMut {
        text.parse().unwrap()
    }

    #[test]
    fn a_provider_without_plugin_configuration_gets_the_image_and_the_right_to_read_it() {
        let config = parsed(&with_image("", CATALOG, "debian-12", "/images/").unwrap());
        assert_eq!(
            config["settings"]["images"]["debian-12"]["source"].as_str(),
            Some("/images/disk.qcow2")
        );
        assert_eq!(
            config["settings"]["images"]["debian-12"]["direct-boot"]["kernel"].as_str(),
            Some("/images/vmlinux")
        );
        assert_eq!(config["grants"]["files"][0].as_str(), Some("/images/"));
    }

    #[test]
    fn what_an_operator_wrote_stays_and_a_second_run_changes_nothing() {
        let operators = "# mine\n[settings]\naccelerator = \"tcg\" # no KVM here\n\n[settings.images.mine]\nsource = \"/m.qcow2\"\n\n[grants]\nfiles = [\"/m.qcow2\"]\n";
        let once = with_image(operators, CATALOG, "debian-12", "/images/").unwrap();
        for kept in [
            "# mine",
            "accelerator = \"tcg\" # no KVM here",
            "[settings.images.mine]\nsource = \"/m.qcow2\"",
            "\"/m.qcow2\", \"/images/\"",
        ] {
            assert!(once.contains(kept), "{kept} is not in:\n{once}");
        }
        assert_eq!(with_image(&once, CATALOG, "debian-12", "/images/").unwrap(), once);
    }

    #[test]
    fn a_rebuilt_image_replaces_its_entry_only() {
        let once = with_image(
            "[settings.images.mine]\nsource = \"/m\"\n",
            CATALOG,
            "debian-12",
            "/images/",
        )
        .unwrap();
        let again =
            with_image(&once, &CATALOG.replace("aa", "bb"), "debian-12", "/images/").unwrap();
        let config = parsed(&again);
        assert_eq!(config["settings"]["images"]["debian-12"]["sha256"].as_str(), Some("bb"));
        assert_eq!(config["settings"]["images"]["mine"]["source"].as_str(), Some("/m"));
        assert_eq!(again.matches("Written by").count(), 1, "{again}");
        assert_eq!(config["grants"]["files"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_file_that_is_not_what_it_should_be_is_an_error_and_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let (config, catalog) =
            (directory.path().join("qemu.toml"), directory.path().join("catalog.toml"));
        fs::write(&catalog, CATALOG).unwrap();
        for broken in ["[settings", "settings = 3\n", "[grants]\nfiles = \"/x\"\n"] {
            fs::write(&config, broken).unwrap();
            let error = format!("{:#}", offer_image(&config, &catalog, "debian-12").unwrap_err());
            assert!(error.contains("qemu.toml"), "{error}");
            assert_eq!(fs::read_to_string(&config).unwrap(), broken);
        }
    }
}
