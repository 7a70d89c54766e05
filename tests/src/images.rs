//! The image that test machines boot, and how the provider learns of it: through the QEMU plugin's configuration file, as an
//! operator would add one.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// The alias of the image that `cargo xtask image` builds.
pub const DEFAULT_IMAGE: &str = "debian-12";

/// Says where the image's catalog is, if not in its usual place.
const CATALOG_VARIABLE: &str = "GOLEM_TEST_IMAGE_CATALOG";

/// An entry for the catalog of a provider.
#[derive(Debug, Clone)]
pub struct Image {
    alias: String,
    entry: toml::Table,
}

/// An image with what QEMU starts itself.
pub(crate) struct DirectBoot<'a> {
    pub disk: &'a str,
    pub kernel: &'a str,
    pub initrd: &'a str,
    pub append: &'a str,
}

impl Image {
    /// The image for tests.
    ///
    /// # Errors
    /// When it was not built yet; the text says how to.
    pub fn for_tests() -> Result<Image> {
        let catalog = catalog_path()?;
        if !catalog.is_file() {
            bail!(
                "there is no image to boot: {} is missing. Run `cargo xtask image` first, or name another catalog in {CATALOG_VARIABLE}",
                catalog.display()
            );
        }
        let text = fs::read_to_string(&catalog)
            .with_context(|| format!("reading {}", catalog.display()))?;
        let catalog_table: toml::Table =
            toml::from_str(&text).with_context(|| format!("{} is wrong", catalog.display()))?;
        let entry = catalog_table
            .get("images")
            .and_then(|images| images.get(DEFAULT_IMAGE))
            .and_then(toml::Value::as_table)
            .with_context(|| format!("{} has no image {DEFAULT_IMAGE}", catalog.display()))?;
        let image = Image { alias: DEFAULT_IMAGE.to_owned(), entry: entry.clone() };
        for file in image.files() {
            if !file.is_file() {
                bail!(
                    "{} names {}, which is missing: run `cargo xtask image`",
                    catalog.display(),
                    file.display()
                );
            }
        }
        Ok(image)
    }

    /// The same image under another name and with a digest that is not its own.
    #[must_use]
    pub fn with_wrong_digest(&self, alias: &str) -> Image {
        let mut entry = self.entry.clone();
        entry.insert("sha256".to_owned(), "0".repeat(64).into());
        Image { alias: alias.to_owned(), entry }
    }

    /// What boots the image without firmware; absent where there is no kernel beside it.
    pub(crate) fn direct_boot(&self) -> Option<DirectBoot<'_>> {
        let direct = self.entry.get("direct-boot")?;
        Some(DirectBoot {
            disk: self.entry.get("source")?.as_str()?,
            kernel: direct.get("kernel")?.as_str()?,
            initrd: direct.get("initrd")?.as_str()?,
            append: direct.get("append")?.as_str()?,
        })
    }

    fn files(&self) -> Vec<PathBuf> {
        let direct = self.entry.get("direct-boot");
        let direct = |key: &str| direct.and_then(|direct| direct.get(key));
        [self.entry.get("source"), direct("kernel"), direct("initrd")]
            .into_iter()
            .flatten()
            .filter_map(toml::Value::as_str)
            .map(PathBuf::from)
            .collect()
    }
}

/// The configuration file that offers these images, and lets the plugin read their files.
///
/// # Errors
/// When it cannot be written as TOML.
pub fn plugin_configuration(images: &[Image]) -> Result<String> {
    let mut catalog = toml::Table::new();
    let mut files = Vec::new();
    for image in images {
        catalog.insert(image.alias.clone(), image.entry.clone().into());
        files.extend(image.files().iter().map(|file| file.display().to_string().into()));
    }
    let table = |key: &str, value: toml::Value| toml::Table::from_iter([(key.to_owned(), value)]);
    let mut configuration = table("settings", table("images", catalog.into()).into());
    configuration.extend(table("grants", table("files", toml::Value::Array(files)).into()));
    toml::to_string(&configuration).context("writing the plugin's configuration")
}

fn catalog_path() -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(catalog) = set(CATALOG_VARIABLE) {
        return Ok(catalog);
    }
    let cache = set("XDG_CACHE_HOME")
        .or_else(|| Some(env::home_dir()?.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(cache.join(Path::new("golem-provider/images")).join(DEFAULT_IMAGE).join("catalog.toml"))
}
