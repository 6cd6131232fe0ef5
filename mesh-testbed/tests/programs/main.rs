//! The kernel programs without the agent: maps are filled by hand, programs of nobody of this
//! project connect. What the agent makes of it is tested in mesh-agent.

mod agent;
mod direct;
mod inbound;
mod limits;
mod node;
