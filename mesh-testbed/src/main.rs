//! Servers and clients that run inside pods. A process belongs to one cgroup, so what a pod does
//! needs a process of its own. All speak JSON, one object a line, on standard output.

mod bench;
mod demo;
mod helper;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Servers and clients that run inside pods.
#[derive(Debug, Parser)]
#[command(name = "mesh-testbed")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// An HTTP/1 and HTTP/2 (prior knowledge) server that says what it was asked.
    EchoHttp(helper::echo_http::Args),
    /// A TCP server that greets with its name and sends back what it gets.
    EchoTcp(helper::echo_tcp::Args),
    /// An HTTP/1 server that answers with the bytes a request asks for.
    RawHttp(helper::raw_http::Args),
    /// Answers what filters ask, as the request says.
    FilterPeer(helper::peer::Args),
    /// Opens connections and says what became of them.
    Connect(helper::connect::Args),
    /// Makes connections and ends them at once, in all the ways connections end.
    Churn(helper::churn::Args),
    /// Sends bytes as told, line by line, and says what came back.
    Talk,
    /// Makes sockets and hands them to whoever started it.
    Sockets(helper::sockets::Args),
    /// Sends requests at a steady rate and says how long answers took.
    Paced(helper::paced::Args),
    /// The first process of a virtual machine that tests another kernel.
    Init,
    /// Sends numbered bytes to a server that echoes, and checks what comes back.
    Stream(helper::stream::Args),
    /// What the mesh costs and saves, measured: `cargo xtask bench`.
    Bench(bench::Args),
    /// The mesh at work, in a minute: `cargo xtask demo`.
    Demo(demo::Args),
}

fn main() -> ExitCode {
    // Thousands of connections are held by one process.
    let _ = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).and_then(
        |(_, most)| {
            nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, most, most)
        },
    );
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::EchoHttp(args) => runtime()?.block_on(helper::echo_http::serve(args)),
        Command::EchoTcp(args) => runtime()?.block_on(helper::echo_tcp::serve(args)),
        Command::RawHttp(args) => runtime()?.block_on(helper::raw_http::serve(args)),
        Command::FilterPeer(args) => runtime()?.block_on(helper::peer::serve(args)),
        Command::Connect(args) => helper::connect::run(&args),
        Command::Churn(args) => helper::churn::run(&args),
        Command::Talk => helper::talk::run(),
        Command::Sockets(args) => helper::sockets::run(&args),
        Command::Paced(args) => helper::paced::run(&args),
        Command::Init => helper::init::run(),
        Command::Stream(args) => helper::stream::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Demo(args) => demo::run(args),
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}
