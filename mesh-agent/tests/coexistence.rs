//! Other tools' programs on the same cgroups: nobody is in anybody's way.

mod common;

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::foreign::{ForeignConnect4, Share, connect4_programs};
use mesh_testbed::{Connect, MeshAgent, Pod, Server, Testbed, needs_root};

use common::{Config, greeted_by};

/// Ports that programs of other tools refuse.
const EARLIER: u16 = 4001;
const LATER: u16 = 4002;
const ABOVE: u16 = 4003;

struct Bed {
    client: Pod,
    app: Server,
    vip: SocketAddr,
    testbed: Testbed,
    _pod: Pod,
}

impl Bed {
    fn new() -> Result<Self> {
        let testbed = Testbed::new()?;
        let pod = testbed.pod("server")?;
        Ok(Self {
            client: testbed.pod("client")?,
            app: Server::tcp(&pod, "app", 9000)?,
            vip: (testbed.vip4(7), 700).into(),
            testbed,
            _pod: pod,
        })
    }

    fn config(&self) -> String {
        Config::default()
            .enrol(&self.client, "")
            .tcp("app", self.vip, "")
            .cluster("app", &[self.app.addr4()])
            .yaml()
    }

    fn served(&self) -> Result<()> {
        let one = Connect::to(self.vip).run_one(&self.client)?;
        ensure!(greeted_by(&one)? == "app");
        Ok(())
    }

    /// What connect(2) to the server says at a port where nobody listens.
    fn errno(&self, port: u16) -> Result<i32> {
        let at = SocketAddr::new(self.app.addr4().ip(), port);
        Ok(Connect::to(at).run_one(&self.client)?.errno)
    }
}

#[test]
fn programs_of_others_go_on_and_so_do_ours() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let cgroup = bed.testbed.cgroup();
    let refuse = |port, cgroup| ForeignConnect4::attach(cgroup, port, Share::Multi);
    let earlier = refuse(EARLIER, cgroup)?;
    let agent = MeshAgent::start(&bed.testbed, &bed.config())?;
    let later = refuse(LATER, cgroup)?;
    let inside = refuse(ABOVE, bed.client.cgroup())?;
    bed.served()?;
    for port in [EARLIER, LATER, ABOVE] {
        assert_eq!(bed.errno(port)?, libc::EPERM, "{port}");
    }
    assert_eq!(bed.errno(4004)?, libc::ECONNREFUSED);

    // Another tool goes, and comes back.
    drop(earlier);
    bed.served()?;
    assert_eq!(bed.errno(EARLIER)?, libc::ECONNREFUSED);
    assert_eq!(bed.errno(LATER)?, libc::EPERM);
    let earlier = refuse(EARLIER, cgroup)?;
    bed.served()?;
    assert_eq!(bed.errno(EARLIER)?, libc::EPERM);
    assert_eq!(connect4_programs(cgroup)?, 3);

    // An agent that is killed leaves its programs, one that is replaced changes them in place,
    // and uninstall removes them and nothing else.
    agent.kill()?;
    bed.served()?;
    let agent = MeshAgent::start(&bed.testbed, &bed.config())?;
    bed.served()?;
    assert_eq!(connect4_programs(cgroup)?, 3);
    agent.kill()?;
    drop(later);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_mesh-agent"))
        .arg("uninstall")
        .arg("--bpffs")
        .arg(bed.testbed.bpffs())
        .output()
        .context("cannot start it")?;
    assert!(output.status.success(), "{output:?}");
    mesh_testbed::eventually("only theirs are left", common::PATIENCE, || {
        connect4_programs(cgroup).is_ok_and(|count| count == 1)
    })?;
    for port in [EARLIER, ABOVE] {
        assert_eq!(bed.errno(port)?, libc::EPERM, "{port}");
    }
    assert_eq!(std::fs::read_dir(bed.testbed.bpffs())?.count(), 0);
    drop((earlier, inside));
    Ok(())
}

#[test]
fn a_program_that_shares_with_nobody_is_told_of() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let alone = ForeignConnect4::attach(bed.testbed.cgroup(), EARLIER, Share::Alone)?;
    let refused = MeshAgent::start(&bed.testbed, &bed.config()).expect_err("there is no room");
    let text = format!("{refused:#}");
    assert!(text.contains("BPF_F_ALLOW_MULTI"), "{text}");
    // Theirs is as it was, and of ours nothing is left in the way.
    assert_eq!(bed.errno(EARLIER)?, libc::EPERM);
    drop(alone);
    let _agent = MeshAgent::start(&bed.testbed, &bed.config())?;
    bed.served()
}
