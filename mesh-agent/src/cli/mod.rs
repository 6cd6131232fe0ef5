//! The command line: arguments, and the commands that only look.

pub mod args;
mod duration;

pub use args::{Args, Command};
