//! `cargo run -p hanse-generate`: writes the generated code of every `.proto` into the tree.

fn main() -> anyhow::Result<()> {
    let root = hanse_generate::workspace_root();
    for path in hanse_generate::generate(&root, &root)? {
        println!("{}", path.display());
    }
    Ok(())
}
