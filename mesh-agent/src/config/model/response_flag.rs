//! Envoy's response flags: what was special about a request or a connection.

use std::fmt;

macro_rules! flags {
    ($($name:ident $short:literal $doc:literal,)*) => {
        /// One of Envoy's response flags (`StreamInfo::CoreResponseFlag`), in Envoy's order.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ResponseFlag {
            $(#[doc = $doc] $name,)*
        }

        impl ResponseFlag {
            /// Every flag.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// As `%RESPONSE_FLAGS%` has it.
            pub const fn short(self) -> &'static str {
                match self { $(Self::$name => $short,)* }
            }

            /// As `%RESPONSE_FLAGS_LONG%` has it.
            pub const fn long(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }
    };
}

flags! {
    FailedLocalHealthCheck "LH" "The local service failed its health check.",
    NoHealthyUpstream "UH" "The cluster had no healthy endpoint.",
    UpstreamRequestTimeout "UT" "The upstream took too long.",
    LocalReset "LR" "The connection was reset from here.",
    UpstreamRemoteReset "UR" "The upstream reset the stream.",
    UpstreamConnectionFailure "UF" "No connection to the upstream could be made.",
    UpstreamConnectionTermination "UC" "The connection to the upstream ended.",
    UpstreamOverflow "UO" "A circuit breaker was open.",
    NoRouteFound "NR" "No route or filter chain took it.",
    DelayInjected "DI" "It was delayed on purpose.",
    FaultInjected "FI" "It was aborted on purpose.",
    RateLimited "RL" "There were too many.",
    UnauthorizedExternalService "UAEX" "An authorization service denied it.",
    RateLimitServiceError "RLSE" "The rate limit service did not answer.",
    DownstreamConnectionTermination "DC" "The client left.",
    UpstreamRetryLimitExceeded "URX" "It was tried as often as may be.",
    StreamIdleTimeout "SI" "Nothing moved for too long.",
    InvalidEnvoyRequestHeaders "IH" "A header of Envoy's had a value it cannot have.",
    DownstreamProtocolError "DPE" "The client broke the protocol.",
    UpstreamMaxStreamDurationReached "UMSDR" "The upstream's stream was too long.",
    ResponseFromCacheFilter "RFCF" "A cache answered.",
    NoFilterConfigFound "NFCF" "The configuration of a filter did not come in time.",
    DurationTimeout "DT" "The connection lasted too long.",
    UpstreamProtocolError "UPE" "The upstream broke the protocol.",
    NoClusterFound "NC" "The route's cluster does not exist.",
    OverloadManagerTerminated "OM" "There was too much to do.",
    DnsResolutionFailed "DF" "A name was not resolved.",
    DropOverload "DO" "The control plane asked to drop some.",
    DownstreamRemoteReset "DR" "The client reset the stream.",
    UnconditionalDropOverload "UDO" "The control plane asked to drop all.",
}

impl ResponseFlag {
    /// By its short name.
    pub fn of(short: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|flag| flag.short() == short)
    }

    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// Bits that a flag's number takes.
const WIDTH: u32 = 5;

/// A set of flags, in the order in which they were set; nearly always empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct ResponseFlags {
    bits: u32,
    /// Their numbers, the first one lowest; the twelve that fit are more than come together.
    order: u64,
}

impl ResponseFlags {
    /// None of them.
    pub const NONE: Self = Self { bits: 0, order: 0 };

    /// Adds a flag.
    pub fn set(&mut self, flag: ResponseFlag) {
        if self.has(flag) {
            return;
        }
        let at = self.bits.count_ones() * WIDTH;
        self.bits |= flag.bit();
        self.order |= (flag as u64).checked_shl(at).unwrap_or(0);
    }

    /// Adds all flags of another set.
    pub fn add(&mut self, other: Self) {
        other.iter().for_each(|flag| self.set(flag));
    }

    /// Whether a flag is set.
    pub fn has(self, flag: ResponseFlag) -> bool {
        self.bits & flag.bit() != 0
    }

    /// Whether the sets have a flag in common.
    pub fn meets(self, other: Self) -> bool {
        self.bits & other.bits != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.bits == 0
    }

    /// The flags that are set, the first one first.
    pub fn iter(self) -> impl Iterator<Item = ResponseFlag> {
        let known = self.bits.count_ones().min(u64::BITS / WIDTH);
        (0..known).filter_map(move |at| {
            let number = self.order >> (at * WIDTH) & ((1 << WIDTH) - 1);
            ResponseFlag::ALL.get(number as usize).copied()
        })
    }
}

impl From<ResponseFlag> for ResponseFlags {
    fn from(flag: ResponseFlag) -> Self {
        let mut set = Self::NONE;
        set.set(flag);
        set
    }
}

impl FromIterator<ResponseFlag> for ResponseFlags {
    fn from_iter<I: IntoIterator<Item = ResponseFlag>>(flags: I) -> Self {
        flags.into_iter().fold(Self::NONE, |mut set, flag| {
            set.set(flag);
            set
        })
    }
}

/// As `%RESPONSE_FLAGS%`; without any it is empty.
impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, flag) in self.iter().enumerate() {
            let separator = if i == 0 { "" } else { "," };
            write!(f, "{separator}{}", flag.short())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_told_in_the_order_they_were_set_in() {
        let flags: ResponseFlags = [
            ResponseFlag::UpstreamRetryLimitExceeded,
            ResponseFlag::UpstreamConnectionFailure,
        ]
        .into_iter()
        .collect();
        assert_eq!(flags.to_string(), "URX,UF");
        let mut more = ResponseFlags::from(ResponseFlag::UnconditionalDropOverload);
        more.add(flags);
        more.set(ResponseFlag::UnconditionalDropOverload);
        assert_eq!(more.to_string(), "UDO,URX,UF");
        assert_eq!(ResponseFlags::NONE.to_string(), "");
        for flag in ResponseFlag::ALL {
            assert_eq!(ResponseFlag::of(flag.short()), Some(*flag));
        }
        assert_eq!(ResponseFlag::NoRouteFound.long(), "NoRouteFound");
    }
}
