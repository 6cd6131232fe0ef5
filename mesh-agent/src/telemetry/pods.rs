//! The pods of this node by network namespace and by address.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::model::workload::Workload;

use super::KnownPod;

/// How many pods that are gone stay known: their last records come after them.
const REMEMBERED: usize = 1024;

/// Who is who.
#[derive(Debug, Default)]
pub(super) struct Pods {
    by_netns: HashMap<u64, Arc<Workload>>,
    by_ip: HashMap<IpAddr, Arc<Workload>>,
    /// Those that are here, or were, oldest first.
    order: VecDeque<u64>,
    introduced: bool,
}

impl Pods {
    /// Whether anybody said who is here.
    pub(super) fn are_known(&self) -> bool {
        self.introduced
    }

    /// These are here now.
    pub(super) fn know(&mut self, pods: Vec<KnownPod>) {
        self.introduced = true;
        self.by_ip.clear();
        for pod in pods {
            for ip in pod.ips {
                self.by_ip.insert(ip, pod.workload.clone());
            }
            let cookie = pod.pod.netns.cookie();
            if self.by_netns.insert(cookie, pod.workload).is_none() {
                self.order.push_back(cookie);
            }
        }
        let here = self.by_ip.len();
        while self.order.len() > here + REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.by_netns.remove(&oldest);
            }
        }
    }

    pub(super) fn by_netns(&self, cookie: u64) -> Option<&Arc<Workload>> {
        self.by_netns.get(&cookie)
    }

    pub(super) fn by_ip(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.by_ip.get(&ip)
    }
}
