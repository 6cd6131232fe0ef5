//! `envoy.filters.http.compressor`: responses are sent smaller.

use crate::config::model::matcher::StringMatcher;

/// Envoy's `Compressor`, for responses.
#[derive(Debug)]
pub struct Compressor {
    /// How.
    pub library: Library,
    /// Whether it is on.
    pub enabled: bool,
    /// Shorter ones stay as they are, in bytes.
    pub min_length: u64,
    /// Types that are worth it, in lower case.
    pub types: Vec<String>,
    /// Types that are worth it, beside those.
    pub type_matchers: Vec<StringMatcher>,
    /// Responses with an `etag` stay as they are.
    pub disable_on_etag: bool,
    /// A strong `etag` is made weak; otherwise it is removed.
    pub weaken_etag: bool,
    /// The upstream does not see `accept-encoding`.
    pub remove_accept_encoding: bool,
    /// Statuses that stay as they are.
    pub uncompressible_statuses: Vec<u16>,
    /// Of several filters this one wins if a client likes them equally.
    pub choose_first: bool,
}

/// How bytes are made fewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// `gzip`, with zlib's level.
    Gzip(u32),
    /// `br`
    Brotli {
        /// 0 to 11.
        quality: u32,
        /// As a power of two.
        window_bits: u32,
    },
    /// `zstd`, with its level.
    Zstd(i32),
}

impl Library {
    /// The name clients know it by.
    pub fn encoding(self) -> &'static str {
        match self {
            Self::Gzip(_) => "gzip",
            Self::Brotli { .. } => "br",
            Self::Zstd(_) => "zstd",
        }
    }
}

/// What a route says of the filter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PerRoute {
    /// Instead of the filter's.
    pub remove_accept_encoding: Option<bool>,
}
