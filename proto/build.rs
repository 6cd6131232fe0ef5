//! Compiles the definitions, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "istio/v1/auth/ca.proto";
    println!("cargo:rerun-if-changed={file}");
    let descriptors = protox::compile([file], ["."])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
