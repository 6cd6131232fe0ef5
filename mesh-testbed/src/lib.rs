//! Test-only: pods as network namespaces and cgroups on a bridge, real servers and clients.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let testbed = mesh_testbed::Testbed::new()?;
//! let client = testbed.pod("client")?;
//! let server = testbed.pod("server")?;
//! let output = client.command("ping").args(["-c1", &server.ip4().to_string()]).output()?;
//! assert!(output.status.success());
//! # Ok(())
//! # }
//! ```
//! Everything a [`Testbed`] made is gone when it is dropped, also on panic. What a killed process
//! left behind is removed by the next testbed.

pub mod ads;
mod agent;
mod binary;
mod bpffs;
mod ca;
mod cgroup;
mod churn;
mod connect;
mod curl;
mod envoy;
pub mod foreign;
mod go_control_plane;
pub mod http1;
mod id;
mod ip;
mod istiod;
mod lease;
pub mod loopback;
mod name_server;
mod netns;
mod nginx;
pub mod oracle;
mod paced;
mod page;
mod pod;
pub mod priority;
mod process;
pub mod protocols;
mod python;
mod server;
mod skip;
mod sockets;
mod stream;
mod sweep;
mod talk;
mod testbed;
mod wait;
pub mod wire;

pub use agent::{MeshAgent, MeshAgentBuilder};
pub use ca::{Ca, Issued};
pub use churn::Churn;
pub use connect::{Connect, Open};
pub use curl::{Curl, Response};
pub use envoy::{Envoy, EnvoyOptions};
pub use go_control_plane::GoControlPlane;
pub use istiod::{Istiod, IstiodBuilder};
pub use name_server::NameServer;
pub use netns::within_netns;
pub use nginx::Nginx;
pub use paced::{Paced, Protocol};
pub use page::Page;
pub use pod::Pod;
pub use python::Python;
pub use server::Server;
pub use skip::{is_root, skipped};
pub use sockets::{BATCH as SOCKET_BATCH, Kind as SocketKind};
pub use stream::{Stream, Streaming};
pub use talk::{Answers, Talk};
pub use testbed::{NODE_CGROUP_AGENT, Testbed, remove_own};
pub use wait::eventually;
