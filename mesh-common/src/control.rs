//! What the agent tells the programs, and what they count.

use bytemuck::{Pod, Zeroable};

/// `CTRL[0]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Control {
    /// When the agent last was alive, in ns of the monotonic clock.
    pub heartbeat_ns: u64,
    /// The agent's own cgroup: its sockets are never captured.
    pub agent_cgroup: u64,
}

/// Ways out of the hooks: indices of the per-CPU array `COUNTERS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// connect: the namespace is not an enrolled pod.
    NotEnrolled = 0,
    /// connect: the agent's own socket.
    AgentSelf = 1,
    /// connect: to loopback or to the pod's own address.
    Local = 2,
    /// connect: left alone by the capture settings.
    Excluded = 3,
    /// connect: no service, or one that passes.
    Pass = 4,
    /// connect: a backend was picked in the kernel.
    Direct = 5,
    /// connect: handed to the agent.
    Agent = 6,
    /// connect: refused by configuration.
    Deny = 7,
    /// connect: refused, the service has no backend.
    NoBackend = 8,
    /// connect: refused, a limit of connections is reached.
    Overflow = 9,
    /// connect: the agent is down, the service is fail-closed.
    AgentDown = 10,
    /// connect: the agent is down, the service is fail-open.
    FailOpen = 11,
    /// connect: a map had no room for the connection's state.
    NoMemory = 12,
    /// sk_lookup: steered to the pod's inbound listener.
    InboundSteered = 13,
    /// sk_lookup: left alone.
    InboundPass = 14,
    /// sk_lookup: the agent is down and the pod is fail-closed.
    InboundRefused = 15,
    /// sockops: the record of a connection found no room in the ring buffer.
    EventLost = 16,
    /// sk_lookup: refused by access rules.
    InboundDenied = 17,
    /// sockops: the connection's messages may go past TCP.
    Accelerated = 18,
    /// sk_msg: a direction of an accelerated connection left for TCP.
    AcceleratedLeft = 19,
}

impl Counter {
    /// How many there are.
    pub const COUNT: u32 = 20;

    /// Names for metrics, by index.
    pub const NAMES: [&'static str; Self::COUNT as usize] = [
        "not_enrolled",
        "agent_self",
        "local",
        "excluded",
        "pass",
        "direct",
        "agent",
        "deny",
        "no_backend",
        "overflow",
        "agent_down",
        "fail_open",
        "no_memory",
        "inbound_steered",
        "inbound_pass",
        "inbound_refused",
        "event_lost",
        "inbound_denied",
        "accelerated",
        "accelerated_left",
    ];
}
