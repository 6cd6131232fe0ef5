//! The project's own commands: `cargo xtask COMMAND`.

mod apt;
mod bench;
mod demo;
mod descriptors;
mod dist;
mod doctor;
mod ebpf;
mod envoy;
mod golang;
mod kernels;
mod pip;
mod python;
mod sh;
mod test;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What this machine has and lacks for building, running and testing.
    Doctor,
    /// Build the kernel programs into TARGET_DIR/bpf/mesh-ebpf.o.
    BuildEbpf,
    /// Everything CI runs, or a part of it.
    Test {
        /// Leave out to run all parts.
        #[arg(value_enum)]
        part: Option<test::Part>,
        /// The same as `kernels`.
        #[arg(long, conflicts_with = "part")]
        kernels: bool,
    },
    /// Make proto/descriptors.bin anew from the definitions that ship with Envoy's messages.
    GenDescriptors,
    /// The mesh at work on this machine, in a minute.
    Demo(demo::Args),
    /// The agent beside no mesh and beside Envoy, measured on this machine.
    Bench(bench::Args),
    /// A release tarball: TARGET_DIR/dist/mesh-agent-VERSION-ARCH-linux.tar.gz.
    Dist,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Doctor => doctor::run(),
        Command::BuildEbpf => ebpf::build().map(|object| println!("{}", object.display())),
        Command::Test { part, kernels } => {
            test::run(part.or(kernels.then_some(test::Part::Kernels)))
        }
        Command::GenDescriptors => descriptors::run(),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Dist => dist::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
