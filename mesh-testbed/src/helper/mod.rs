//! The subcommands.

pub(crate) mod churn;
pub(crate) mod connect;
pub(crate) mod echo_http;
pub(crate) mod echo_tcp;
pub(crate) mod init;
mod listen;
pub(crate) mod paced;
pub(crate) mod peer;
pub(crate) mod raw_http;
pub(crate) mod sockets;
pub(crate) mod stream;
pub(crate) mod talk;
