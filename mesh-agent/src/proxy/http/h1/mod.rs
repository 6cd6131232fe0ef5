//! HTTP/1.1, both sides. Written here because a proxy needs from its codec what libraries hide:
//! Envoy's answers to what is malformed, the target as it stood on the wire, and no more than two
//! reads and two writes a request.

mod chunked;
pub(in crate::proxy) mod client;
mod fields;
pub(in crate::proxy) mod micro;
mod request;
mod response;
pub(in crate::proxy) mod server;
mod write;

pub(super) use fields::has_token;

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod tests;
