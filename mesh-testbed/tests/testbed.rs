//! The testbed itself.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use mesh_testbed::{Testbed, needs_root};

/// Connects without blocking for long; the error number if it fails.
fn dial(pod: &mesh_testbed::Pod, address: std::net::SocketAddr) -> Result<Option<i32>> {
    pod.within(|| {
        TcpStream::connect_timeout(&address, Duration::from_secs(2))
            .err()
            .and_then(|error| error.raw_os_error())
    })
}

#[test]
fn pods_reach_each_other_and_the_node_at_once() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (a, b) = (testbed.pod("a")?, testbed.pod("b")?);
    for address in b.ips().into_iter().chain(testbed.node_ips()) {
        let listener = match address == testbed.node_ips()[0] || address == testbed.node_ips()[1] {
            true => TcpListener::bind((address, 0))?,
            false => b.within(|| TcpListener::bind((address, 0)))??,
        };
        assert_eq!(dial(&a, listener.local_addr()?)?, None, "{address}");
    }
    Ok(())
}

#[test]
fn a_service_address_has_no_route() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let pod = testbed.pod("a")?;
    assert_eq!(
        dial(&pod, (testbed.vip4(1), 80).into())?,
        Some(libc::EHOSTUNREACH)
    );
    assert_eq!(
        dial(&pod, (testbed.vip6(1), 80).into())?,
        Some(libc::EHOSTUNREACH)
    );
    Ok(())
}

#[test]
fn a_command_runs_in_the_cgroup_and_the_namespace() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let pod = testbed.pod("a")?;
    let output = pod.command("cat").args(["/proc/self/cgroup"]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let wanted = format!("0::/{}/a", testbed.name());
    assert!(text.lines().any(|line| line == wanted), "{text}");
    let inside = pod
        .command("readlink")
        .arg("/proc/self/ns/net")
        .output()?
        .stdout;
    let outside = Command::new("readlink")
        .arg("/proc/self/ns/net")
        .output()?
        .stdout;
    assert_ne!(inside, outside);
    Ok(())
}

#[test]
fn testbeds_at_the_same_time_do_not_meet() -> Result<()> {
    needs_root!(Ok(()));
    let (one, two) = (Testbed::new()?, Testbed::new()?);
    let (a, b) = (one.pod("same")?, two.pod("same")?);
    assert_ne!(a.ip4(), b.ip4());
    assert_ne!(a.netns_path(), b.netns_path());
    assert_ne!(one.bpffs(), two.bpffs());
    assert_ne!(one.cgroup(), two.cgroup());
    assert!(one.pod("same").is_err(), "a name is unique in a testbed");
    Ok(())
}

#[test]
fn nothing_is_left_also_when_a_test_panics() -> Result<()> {
    needs_root!(Ok(()));
    let mut paths = Vec::new();
    let mut child = None;
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let testbed = Testbed::new().unwrap();
        let pod = testbed.pod("a").unwrap();
        child = Some(pod.command("sleep").arg("600").spawn().unwrap());
        paths = vec![
            pod.netns_path(),
            pod.cgroup().to_owned(),
            testbed.cgroup().to_owned(),
            testbed.bpffs().to_owned(),
            format!("/sys/class/net/{}", testbed.name()).into(),
        ];
        assert!(paths.iter().all(|path| path.exists()));
        panic!("on purpose");
    }));
    assert!(panic.is_err());
    for path in paths {
        assert!(!path.exists(), "{} is left", path.display());
    }
    let status = child.expect("it was started").wait()?;
    assert!(!status.success(), "its processes were killed");
    Ok(())
}

/// A process that makes a testbed and is killed cannot clean up; the next testbed does.
#[test]
fn the_next_testbed_removes_what_a_killed_one_left() -> Result<()> {
    needs_root!(Ok(()));
    let dead = {
        let mut child = Command::new("true").spawn()?;
        child.wait()?;
        child.id()
    };
    let name = format!("mt{dead}-beef");
    let cgroup = Testbed::new()?.cgroup().with_file_name(&name);
    let bpffs = std::path::Path::new("/sys/fs/bpf").join(&name);
    std::fs::create_dir_all(cgroup.join("pod"))?;
    std::fs::create_dir(&bpffs)?;
    for args in [
        vec!["link", "add", &name, "type", "bridge"],
        vec!["netns", "add", &format!("{name}-pod")],
    ] {
        assert!(Command::new("ip").args(&args).status()?.success());
    }
    let netns = format!("/var/run/netns/{name}-pod");
    let bridge = format!("/sys/class/net/{name}");
    let _next = Testbed::new()?;
    for path in [
        &cgroup,
        &bpffs,
        std::path::Path::new(&netns),
        std::path::Path::new(&bridge),
    ] {
        assert!(!path.exists(), "{} is left", path.display());
    }
    Ok(())
}

#[test]
fn two_hundred_pods_take_seconds() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let start = Instant::now();
    let pods = testbed.pods((0..200).map(|n| format!("p{n}")))?;
    assert_eq!(pods.len(), 200);
    for address in pods[199].ips() {
        let listener = pods[199].within(|| TcpListener::bind((address, 0)))??;
        assert_eq!(dial(&pods[0], listener.local_addr()?)?, None, "{address}");
    }
    drop(pods);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    eprintln!("200 pods made and removed in {took:?}");
    Ok(())
}

#[test]
fn loopback_is_up_in_a_pod() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let pod = testbed.pod("a")?;
    let listener = pod.within(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
    assert_eq!(dial(&pod, listener.local_addr()?)?, None);
    Ok(())
}
