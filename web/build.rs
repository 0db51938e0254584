//! Builds the browser page for `src/page.rs` to embed.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it")).join("ui");
    std::fs::create_dir_all(out).expect("OUT_DIR can be written");
}
