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

mod bpffs;
mod cgroup;
mod id;
mod ip;
mod lease;
mod netns;
mod pod;
mod skip;
mod sweep;
mod testbed;

pub use netns::within_netns;
pub use pod::Pod;
pub use skip::{is_root, skipped};
pub use testbed::{NODE_CGROUP_AGENT, Testbed};
