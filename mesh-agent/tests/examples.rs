//! Every file in `examples/` is a valid configuration.

use std::path::Path;

use mesh_agent::source::file::load;

#[test]
fn examples_are_valid() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut names = Vec::new();
    for file in std::fs::read_dir(&examples).expect("there are examples") {
        let path = file.expect("the folder can be read").path();
        if let Err(errors) = load(&path, None) {
            panic!("{errors}");
        }
        names.push(path);
    }
    assert!(!names.is_empty(), "nothing in {}", examples.display());
}
