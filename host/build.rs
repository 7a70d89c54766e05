//! Embeds the bundled plugins. They are WebAssembly components, which `cargo xtask plugins` builds before this crate.

use std::{env, error::Error, fmt::Write, fs, path::PathBuf};

/// In the order of preference.
const BUNDLED: &[&str] = &["qemu", "discovery-server", "golem-base", "stream-payment"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=GOLEM_PLUGINS_BUILD_DIR");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let built = match env::var_os("GOLEM_PLUGINS_BUILD_DIR") {
        Some(directory) => PathBuf::from(directory),
        // OUT_DIR is <target>/<profile>/build/<crate>/out, with one more level when a target triple was named.
        None => out
            .ancestors()
            .map(|directory| directory.join("plugins"))
            .find(|directory| {
                BUNDLED.iter().all(|name| directory.join(format!("{name}.wasm")).is_file())
            })
            .unwrap_or_default(),
    };
    let mut list = String::from("&[\n");
    for name in BUNDLED {
        let file = built.join(format!("{name}.wasm"));
        println!("cargo::rerun-if-changed={}", file.display());
        if !file.is_file() {
            return Err(format!(
                "the plugin {name} is not built yet: run `cargo xtask plugins` first"
            )
            .into());
        }
        fs::copy(&file, out.join(format!("{name}.wasm")))?;
        writeln!(
            list,
            "    ({name:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.wasm\"))),"
        )?;
    }
    list.push(']');
    // The unit tests load plugins that are not bundled from there.
    println!("cargo::rustc-env=GOLEM_PLUGINS_BUILD_DIR={}", built.display());
    fs::write(out.join("bundled.rs"), list)?;
    Ok(())
}
