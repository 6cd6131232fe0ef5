//! Names of what a testbed makes: they say which process made it.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};

/// `mtPID-RANDOM`: the name of a testbed, its bridge, its cgroup and its bpffs directory, and
/// the start of the names of its namespaces. An interface name may have 15 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Id {
    pid: u32,
    random: u16,
}

impl Id {
    pub(crate) fn new() -> Self {
        Self {
            pid: std::process::id(),
            random: RandomState::new().build_hasher().finish() as u16,
        }
    }

    /// The testbed that made something of this name; `None` if no testbed did.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let (pid, rest) = name.strip_prefix("mt")?.split_once('-')?;
        let random = rest.get(..4)?;
        if !matches!(rest.as_bytes().get(4), None | Some(b'-')) {
            return None;
        }
        Some(Self {
            pid: pid.parse().ok()?,
            random: u16::from_str_radix(random, 16).ok()?,
        })
    }

    /// Whether the process that made it is gone.
    pub(crate) fn is_orphan(&self) -> bool {
        !std::path::Path::new(&format!("/proc/{}", self.pid)).exists()
    }

    /// Whether this process made it.
    pub(crate) fn is_own(&self) -> bool {
        self.pid == std::process::id()
    }

    /// The name of the namespace of a pod.
    pub(crate) fn netns(&self, pod: &str) -> String {
        format!("{self}-{pod}")
    }

    /// The name of the bridge's end of a pod's cable.
    pub(crate) fn veth(&self, number: u32) -> String {
        format!("v{:x}{:04x}{number:x}", self.pid, self.random)
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "mt{}-{:04x}", self.pid, self.random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_maker() {
        let id = Id::new();
        assert_eq!(Id::of(&id.to_string()), Some(id.clone()));
        assert_eq!(Id::of(&id.netns("client")), Some(id.clone()));
        assert!(!id.is_orphan());
        for other in [
            "mt",
            "eth0",
            "mt12-",
            "mtx-0000",
            "mt12-00000",
            "mt12-zzzz",
            "cni-12-0000",
        ] {
            assert_eq!(Id::of(other), None, "{other}");
        }
    }

    #[test]
    fn interface_names_fit() {
        let largest = Id {
            pid: 4_194_304,
            random: 0xffff,
        };
        assert!(largest.to_string().len() <= 15);
        assert!(largest.veth(1023).len() <= 15);
    }
}
