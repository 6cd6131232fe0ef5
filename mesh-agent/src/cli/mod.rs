//! The command line: arguments, and the commands that only look.

pub mod args;
pub mod certs;
pub mod doctor;
mod duration;
pub mod identity;
pub mod status;
pub mod uninstall;
pub mod xds;

pub use args::{Args, Command};
