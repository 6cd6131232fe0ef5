//! The admin pages (15000), metrics (15020) and readiness (15021).
//!
//! The server only asks: every page is rendered by the control loop, which owns what it shows.

mod certs;
mod config_dump;
mod csds;
mod pages;
mod responses;
mod secrets;
mod server;
mod shown;
mod xds;

pub use pages::{Applied, Page, State};
pub use server::{Question, serve_admin, serve_metrics, serve_readiness};
