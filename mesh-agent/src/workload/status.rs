//! What an operator may ask about workloads.

use std::net::IpAddr;
use std::sync::Arc;

use crate::config::model::workload::Workload;

use super::Pod;

/// A configured workload and how far its enrolment got.
#[derive(Debug, Clone)]
pub struct WorkloadStatus {
    /// What is configured.
    pub workload: Arc<Workload>,
    /// The enrolled pod.
    pub pod: Option<Arc<Pod>>,
    /// Its addresses now.
    pub ips: Vec<IpAddr>,
    /// How far it got.
    pub state: WorkloadState,
    /// Why it is not enrolled as configured.
    pub reason: Option<String>,
}

/// How far an enrolment got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkloadState {
    /// Its traffic is caught.
    Enrolled,
    /// Its traffic is caught, but not all of it as configured.
    Degraded,
    /// Not yet.
    Waiting,
}

impl WorkloadState {
    /// As shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Degraded => "degraded",
            Self::Waiting => "waiting",
        }
    }
}
