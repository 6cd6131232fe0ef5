//! `echo-tcp`: greets, then sends back what it gets until the client closes its side.

use anyhow::Result;
use clap::Args as ClapArgs;
use mesh_testbed::wire::Banner;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::listen::{Listen, ends};

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// What it calls itself.
    #[arg(long, default_value = "echo")]
    name: String,
    /// Wait for the client to speak first.
    #[arg(long)]
    no_banner: bool,
    #[command(flatten)]
    listen: Listen,
}

pub(crate) async fn serve(args: Args) -> Result<()> {
    let listener = args.listen.start()?;
    loop {
        let (stream, _) = listener.accept().await?;
        let name = (!args.no_banner).then(|| args.name.clone());
        // A client that went away ends its own connection only.
        tokio::spawn(async move { echo(stream, name).await });
    }
}

async fn echo(mut stream: TcpStream, name: Option<String>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    if let Some(name) = name {
        let (peer, local) = ends(&stream)?;
        let mut line = serde_json::to_vec(&Banner { name, peer, local })?;
        line.push(b'\n');
        stream.write_all(&line).await?;
    }
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..read]).await?;
    }
}
