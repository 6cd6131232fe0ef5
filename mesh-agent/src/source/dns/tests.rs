//! Against a small name server on loopback.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr as _;

use hickory_resolver::config::{NameServerConfigGroup, ResolverConfig, ResolverOpts};
use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::*;
use crate::config::model::cluster::DnsLookupFamily;

const PATIENCE: Duration = Duration::from_secs(10);

/// A name server that says what it is told to say.
#[derive(Clone, Default)]
struct Server {
    records: Arc<Mutex<HashMap<String, Vec<IpAddr>>>>,
    broken: Arc<Mutex<bool>>,
    ttl: u32,
    asked: Arc<AtomicU64>,
}

impl Server {
    async fn start(self) -> SocketAddr {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port");
        let address = socket.local_addr().expect("bound");
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                let question = Message::from_vec(&buffer[..length]).expect("a question");
                let reply = self.answer(&question).to_vec().expect("encodes");
                socket.send_to(&reply, peer).await.expect("sent");
            }
        });
        address
    }

    fn answer(&self, question: &Message) -> Message {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let query = question.queries().first().expect("one query").clone();
        let mut reply = Message::new();
        reply
            .set_id(question.id())
            .set_message_type(MessageType::Response)
            .add_query(query.clone());
        if *self.broken.lock() {
            reply.set_response_code(ResponseCode::ServFail);
            return reply;
        }
        let records = self.records.lock();
        let Some(addresses) = records.get(query.name().to_utf8().trim_end_matches('.')) else {
            reply.set_response_code(ResponseCode::NXDomain);
            return reply;
        };
        for address in addresses {
            let data = match (address, query.query_type()) {
                (IpAddr::V4(ip), RecordType::A) => RData::A(A(*ip)),
                (IpAddr::V6(ip), RecordType::AAAA) => RData::AAAA(AAAA(*ip)),
                _ => continue,
            };
            reply.add_answer(Record::from_rdata(query.name().clone(), self.ttl, data));
        }
        reply
    }

    fn set(&self, name: &str, addresses: &[&str]) {
        self.records.lock().insert(name.to_owned(), ips(addresses));
    }
}

fn ips(addresses: &[&str]) -> Vec<IpAddr> {
    addresses
        .iter()
        .map(|ip| IpAddr::from_str(ip).expect("an address"))
        .collect()
}

fn resolver(server: SocketAddr) -> Resolver {
    let servers = NameServerConfigGroup::from_ips_clear(&[server.ip()], server.port(), true);
    let mut options = ResolverOpts::default();
    options.attempts = 0;
    options.timeout = Duration::from_secs(2);
    Resolver::with(
        ResolverConfig::from_parts(None, Vec::new(), servers),
        options,
    )
}

fn query(name: &str, family: DnsLookupFamily) -> Query {
    (name.into(), family)
}

fn every(rate: Duration) -> Refresh {
    Refresh {
        rate,
        respect_ttl: false,
    }
}

struct Running {
    source: DnsSource,
    table: watch::Receiver<Arc<DnsTable>>,
    queries: watch::Sender<Arc<Queries>>,
}

async fn start(server: &Server, queries: Queries) -> Running {
    let address = server.clone().start().await;
    let (queries, wanted) = watch::channel(Arc::new(queries));
    let source = DnsSource::start(resolver(address), wanted);
    let table = source.table();
    Running {
        source,
        table,
        queries,
    }
}

impl Running {
    /// Waits for a name's addresses.
    async fn until(&mut self, query: &Query, addresses: Option<&[&str]>) {
        let wanted = addresses.map(ips);
        let seen = |table: &Arc<DnsTable>| {
            let mut now = table.get(query).map(|addresses| addresses.to_vec());
            if let Some(now) = &mut now {
                now.sort();
            }
            now == wanted
        };
        let found = timeout(PATIENCE, self.table.wait_for(seen)).await.is_ok();
        assert!(
            found,
            "{query:?} is {:?}, not {wanted:?}",
            self.table.borrow()
        );
    }
}

#[tokio::test]
async fn families_are_envoys() {
    let server = Server::default();
    server.set("both.test", &["192.0.2.1", "2001:db8::1"]);
    server.set("four.test", &["192.0.2.4"]);
    let expected: [(&str, DnsLookupFamily, &[&str]); 7] = [
        ("both.test", DnsLookupFamily::Auto, &["2001:db8::1"]),
        ("four.test", DnsLookupFamily::Auto, &["192.0.2.4"]),
        ("both.test", DnsLookupFamily::V4Only, &["192.0.2.1"]),
        ("both.test", DnsLookupFamily::V6Only, &["2001:db8::1"]),
        ("both.test", DnsLookupFamily::V4Preferred, &["192.0.2.1"]),
        (
            "both.test",
            DnsLookupFamily::All,
            &["192.0.2.1", "2001:db8::1"],
        ),
        ("four.test", DnsLookupFamily::V6Only, &[]),
    ];
    let queries = expected
        .iter()
        .map(|(name, family, _)| (query(name, *family), every(PATIENCE)))
        .collect();
    let mut running = start(&server, queries).await;
    for (name, family, addresses) in expected {
        running.until(&query(name, family), Some(addresses)).await;
    }
}

#[tokio::test]
async fn changes_are_followed_and_failures_keep_the_last_addresses() {
    let server = Server::default();
    let name = query("reviews.test", DnsLookupFamily::V4Only);
    server.set("reviews.test", &["192.0.2.1"]);
    let queries = Queries::from([(name.clone(), every(Duration::from_millis(20)))]);
    let mut running = start(&server, queries).await;
    running.until(&name, Some(&["192.0.2.1"])).await;

    server.set("reviews.test", &["192.0.2.2", "192.0.2.3"]);
    running
        .until(&name, Some(&["192.0.2.2", "192.0.2.3"]))
        .await;

    *server.broken.lock() = true;
    let stats = running.source.stats().clone();
    let failed = async {
        while stats.failures.load(Ordering::Relaxed) < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, failed)
        .await
        .expect("failures are counted");
    running
        .until(&name, Some(&["192.0.2.2", "192.0.2.3"]))
        .await;

    *server.broken.lock() = false;
    server.records.lock().clear();
    running.until(&name, Some(&[])).await;
}

#[tokio::test]
async fn a_rotated_answer_is_no_change() {
    let server = Server::default();
    let name = query("rotated.test", DnsLookupFamily::V4Only);
    server.set("rotated.test", &["192.0.2.1", "192.0.2.2"]);
    let queries = Queries::from([(name.clone(), every(Duration::from_millis(20)))]);
    let mut running = start(&server, queries).await;
    running
        .until(&name, Some(&["192.0.2.1", "192.0.2.2"]))
        .await;
    running.table.mark_unchanged();

    server.set("rotated.test", &["192.0.2.2", "192.0.2.1"]);
    let before = server.asked.load(Ordering::Relaxed);
    let asked_again = async {
        while server.asked.load(Ordering::Relaxed) < before + 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, asked_again)
        .await
        .expect("it is asked again");
    assert!(!running.table.has_changed().expect("the source runs"));
}

#[tokio::test]
async fn names_that_leave_the_configuration_leave_the_table() {
    let server = Server::default();
    let (a, b) = (
        query("a.test", DnsLookupFamily::V4Only),
        query("b.test", DnsLookupFamily::V4Only),
    );
    server.set("a.test", &["192.0.2.1"]);
    server.set("b.test", &["192.0.2.2"]);
    let refresh = every(PATIENCE);
    let queries = Queries::from([(a.clone(), refresh)]);
    let mut running = start(&server, queries).await;
    running.until(&a, Some(&["192.0.2.1"])).await;
    running
        .queries
        .send_replace(Arc::new(Queries::from([(b.clone(), refresh)])));
    running.until(&b, Some(&["192.0.2.2"])).await;
    running.until(&a, None).await;
}

#[tokio::test]
async fn the_ttl_is_used_when_asked_for() {
    let server = Server {
        ttl: 3600,
        ..Server::default()
    };
    let (fast, slow) = (
        query("fast.test", DnsLookupFamily::V4Only),
        query("slow.test", DnsLookupFamily::V4Only),
    );
    server.set("fast.test", &["192.0.2.1"]);
    server.set("slow.test", &["192.0.2.1"]);
    let rate = Duration::from_millis(20);
    let by_ttl = Refresh {
        rate,
        respect_ttl: true,
    };
    let queries = Queries::from([(fast.clone(), every(rate)), (slow.clone(), by_ttl)]);
    let mut running = start(&server, queries).await;
    running.until(&slow, Some(&["192.0.2.1"])).await;
    server.set("fast.test", &["192.0.2.9"]);
    server.set("slow.test", &["192.0.2.9"]);
    running.until(&fast, Some(&["192.0.2.9"])).await;
    running.until(&slow, Some(&["192.0.2.1"])).await;
}

#[tokio::test]
async fn the_hosts_file_is_honoured() {
    let resolved = Resolver::system()
        .resolve("localhost", DnsLookupFamily::V4Only)
        .await
        .expect("every /etc/hosts has localhost");
    assert_eq!(resolved.addresses, ips(&["127.0.0.1"]));
}
