//! Which streams there are, and which pods see the same.
//!
//! Node scope: one stream, one view. Workload scope: one stream for each pod, as if each had a
//! sidecar; pods that were sent the same share a view, so a hundred equal pods cost about one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use tokio::sync::{Notify, watch};

use crate::config::model::Name;
use crate::config::model::workload::Workload;
use crate::snapshot::ViewId;
use crate::store::ResourceSet;

use super::background::Background;
use super::{Interner, Options, Published, Server, follow};

/// Who has a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// The node.
    #[default]
    Node,
    /// Each pod.
    Workload,
}

/// The streams and what they brought.
#[derive(Debug)]
pub struct Views {
    options: Options,
    scope: Scope,
    interner: Arc<Interner>,
    changed: Arc<Notify>,
    background: Background,
    /// By workload; of the node under the empty name.
    streams: BTreeMap<Name, Stream>,
    /// What each view held when it was assigned last.
    held: BTreeMap<ViewId, u128>,
    next: u32,
}

#[derive(Debug)]
struct Stream {
    published: watch::Receiver<Published>,
    latest: Published,
    /// What tells equal contents.
    fingerprint: u128,
    /// Once the first configuration came whole.
    view: Option<ViewId>,
}

/// What pods may see.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    /// Contents by view.
    pub views: Vec<(ViewId, Arc<ResourceSet>)>,
    /// Views by workload; `None`: all pods see [`ViewId::NODE`]. A workload that is missing has
    /// no configuration yet.
    pub pods: Option<Arc<HashMap<Name, ViewId>>>,
}

impl Sight {
    /// One view for all, of a file.
    pub fn of_file(file: &ResourceSet) -> Self {
        Self {
            views: vec![(ViewId::NODE, Arc::new(file.clone()))],
            pods: None,
        }
    }

    /// Everything any pod sees; of two things under one name the one of the later view.
    pub fn all(&self) -> Arc<ResourceSet> {
        match &self.views[..] {
            [] => Arc::default(),
            [(_, only)] => only.clone(),
            [(_, first), others @ ..] => Arc::new(
                others
                    .iter()
                    .fold((**first).clone(), |all, (_, more)| more.over(&all)),
            ),
        }
    }
}

impl Views {
    /// Nothing is asked yet.
    ///
    /// # Errors
    /// A thread for the streams cannot be made.
    pub fn new(options: Options, scope: Scope) -> io::Result<Self> {
        let mut views = Self {
            options,
            scope,
            interner: Arc::new(match scope {
                Scope::Node => Interner::default(),
                Scope::Workload => Interner::of_many(),
            }),
            changed: Arc::default(),
            background: Background::start()?,
            streams: BTreeMap::new(),
            held: BTreeMap::new(),
            next: ViewId::NODE.0 + 1,
        };
        if scope == Scope::Node {
            let node = views.options.node.clone();
            let server = views.options.server.clone();
            views.open("".into(), node, server);
        }
        Ok(views)
    }

    /// Told whenever a stream brought something or changed its state.
    pub fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    fn open(&mut self, key: Name, node: Node, server: Server) {
        let options = Options {
            node,
            server,
            ..self.options.clone()
        };
        let interner = self.interner.clone();
        let published = follow(&self.background.0, options, interner, self.changed.clone());
        self.streams.insert(
            key,
            Stream {
                latest: Published::default(),
                published,
                fingerprint: 0,
                view: None,
            },
        );
    }

    /// Workload scope: opens streams for pods that came and closes those of pods that went.
    /// `present` finds the addresses of a pod that is there. Says whether a stream was closed.
    pub fn follow_pods(
        &mut self,
        workloads: &[Arc<Workload>],
        present: impl Fn(&Workload) -> Option<Vec<IpAddr>>,
    ) -> bool {
        if self.scope == Scope::Node {
            return false;
        }
        let mut there = BTreeSet::new();
        for workload in workloads {
            let key = workload.key();
            if self.streams.contains_key(&key) {
                if present(workload).is_some() {
                    there.insert(key);
                }
            } else if let Some(ips) = present(workload).filter(|ips| !ips.is_empty()) {
                let node = sidecar(&self.options.node, workload, &ips);
                let (namespace, account) = (&workload.namespace, &workload.service_account);
                let server = self.options.server.asked_by(namespace, account);
                self.open(key.clone(), node, server);
                there.insert(key);
            }
        }
        let before = self.streams.len();
        // A dropped stream ends by itself.
        self.streams.retain(|key, _| there.contains(key));
        self.streams.len() != before
    }

    /// Takes what the streams brought. Says whether what pods see changes by it.
    pub fn take(&mut self) -> bool {
        let mut changed = false;
        for stream in self.streams.values_mut() {
            if !stream.published.has_changed().unwrap_or(false) {
                continue;
            }
            let news = stream.published.borrow_and_update().clone();
            // The first configuration is used whole or not at all: half of it would refuse what
            // the other half allows.
            let usable = stream.latest.complete || news.complete;
            if usable
                && (!stream.latest.complete
                    || !Arc::ptr_eq(&stream.latest.resources, &news.resources))
            {
                match self.scope {
                    // Nothing is compared: there is one view.
                    Scope::Node => changed = true,
                    Scope::Workload => {
                        // The first one may be empty, and is told from none all the same.
                        changed |=
                            !stream.latest.complete || news.fingerprint != stream.fingerprint;
                        stream.fingerprint = news.fingerprint;
                    }
                }
            }
            stream.latest = Published {
                complete: usable,
                ..news
            };
        }
        changed
    }

    /// Whether anything can be served: always in workload scope, where each pod waits for its
    /// own stream.
    pub fn ready(&self) -> bool {
        match self.scope {
            Scope::Node => self.streams.values().all(|stream| stream.latest.complete),
            Scope::Workload => true,
        }
    }

    /// Whether every stream has delivered a whole configuration.
    pub fn complete(&self) -> bool {
        self.streams.values().all(|stream| stream.latest.complete)
    }

    /// Numbers views beyond this one, which the kernel may still know.
    pub fn number_after(&mut self, view: ViewId) {
        self.next = self.next.max(view.0.saturating_add(1));
    }

    /// What pods see, with `file`'s resources before those of the streams.
    pub fn sight(&mut self, file: &ResourceSet) -> Sight {
        let with_file = |resources: &Arc<ResourceSet>| {
            if file.is_empty() {
                resources.clone()
            } else {
                Arc::new(file.over(resources))
            }
        };
        if self.scope == Scope::Node {
            let stream = self.streams.values().next();
            let resources = match stream.filter(|stream| stream.latest.complete) {
                Some(stream) => with_file(&stream.latest.resources),
                None => Arc::new(file.clone()),
            };
            return Sight {
                views: vec![(ViewId::NODE, resources)],
                pods: None,
            };
        }
        self.assign();
        let mut views: BTreeMap<ViewId, Arc<ResourceSet>> = BTreeMap::new();
        let mut pods = HashMap::new();
        for (key, stream) in &self.streams {
            if let Some(view) = stream.view {
                pods.insert(key.clone(), view);
                views
                    .entry(view)
                    .or_insert_with(|| with_file(&stream.latest.resources));
            }
        }
        Sight {
            views: views.into_iter().collect(),
            pods: Some(Arc::new(pods)),
        }
    }

    /// Gives equal contents one view. Of the views that the pods of a group had, the one most of
    /// them had goes on, so that little changes in the kernel's maps.
    ///
    /// A view never changes under a pod that is about to leave it: pods are told of their new view
    /// after it is published, and until then must find the old one as it was. So a view goes on
    /// with other contents only if all who have it come along.
    fn assign(&mut self) {
        let mut users: BTreeMap<ViewId, usize> = BTreeMap::new();
        for view in self.streams.values().filter_map(|stream| stream.view) {
            *users.entry(view).or_default() += 1;
        }
        let mut groups: BTreeMap<u128, Vec<Name>> = BTreeMap::new();
        for (key, stream) in &self.streams {
            if stream.latest.complete {
                groups
                    .entry(stream.fingerprint)
                    .or_default()
                    .push(key.clone());
            }
        }
        let mut sizes: Vec<(u128, Vec<Name>)> = groups.into_iter().collect();
        sizes.sort_by_key(|(_, keys)| std::cmp::Reverse(keys.len()));
        let mut taken = BTreeSet::new();
        let held = std::mem::take(&mut self.held);
        for (fingerprint, keys) in sizes {
            let mut had: BTreeMap<ViewId, usize> = BTreeMap::new();
            for key in &keys {
                if let Some(view) = self.streams.get(key).and_then(|stream| stream.view) {
                    *had.entry(view).or_default() += 1;
                }
            }
            let known = had
                .into_iter()
                .filter(|(view, pods)| {
                    let all = users.get(view) == Some(pods);
                    let same = held.get(view) == Some(&fingerprint);
                    !taken.contains(view) && (all || same)
                })
                .max_by_key(|(_, pods)| *pods)
                .map(|(view, _)| view);
            let view = known.unwrap_or_else(|| {
                let view = ViewId(self.next);
                self.next += 1;
                view
            });
            taken.insert(view);
            self.held.insert(view, fingerprint);
            for key in &keys {
                if let Some(stream) = self.streams.get_mut(key) {
                    stream.view = Some(view);
                }
            }
        }
    }

    /// What the streams brought and how they fare, by workload; the node's under the empty name.
    pub fn streams(&self) -> impl Iterator<Item = (&Name, &Published)> {
        self.streams
            .iter()
            .map(|(key, stream)| (key, &stream.latest))
    }
}

/// The node that a sidecar in the pod would say it is, so that a control plane answers as it
/// answers a sidecar (Istio: `model.ParseServiceNodeWithMetadata`).
fn sidecar(base: &Node, workload: &Workload, ips: &[IpAddr]) -> Node {
    let (name, namespace) = (&workload.name, &workload.namespace);
    let ip = ips
        .iter()
        .find(|ip| ip.is_ipv4())
        .or_else(|| ips.first())
        .map_or_else(String::new, ToString::to_string);
    let addresses: Vec<String> = ips.iter().map(ToString::to_string).collect();
    let text = |text: &str| Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    };
    let labels = workload
        .labels
        .iter()
        .map(|(key, value)| (key.clone(), text(value)))
        .collect();
    let mut metadata = base.metadata.clone().unwrap_or_default();
    metadata.fields.extend([
        ("NAME".to_owned(), text(name)),
        ("NAMESPACE".to_owned(), text(namespace)),
        ("INSTANCE_IPS".to_owned(), text(&addresses.join(","))),
        (
            "SERVICE_ACCOUNT".to_owned(),
            text(&workload.service_account),
        ),
        ("INTERCEPTION_MODE".to_owned(), text("REDIRECT")),
        // istiod describes inbound tunnels, too, where it knows ambient mode.
        ("ENABLE_HBONE".to_owned(), text("true")),
        (
            "LABELS".to_owned(),
            Value {
                kind: Some(Kind::StructValue(Struct { fields: labels })),
            },
        ),
    ]);
    let app = workload
        .labels
        .get("app")
        .unwrap_or(&workload.name.to_string())
        .clone();
    Node {
        id: format!("sidecar~{ip}~{name}.{namespace}~{namespace}.svc.cluster.local"),
        cluster: format!("{app}.{namespace}"),
        metadata: Some(metadata),
        ..base.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Mode;
    use super::*;

    fn views() -> Views {
        let options = Options {
            server: Server::default(),
            mode: Mode::Delta,
            node: Node::default(),
            max_message_bytes: 1 << 20,
        };
        Views::new(options, Scope::Workload).unwrap()
    }

    /// The views of pods whose streams brought these contents.
    fn assigned(views: &mut Views, contents: &[(&str, u128)]) -> Vec<u32> {
        for (pod, fingerprint) in contents {
            let known = views.streams.get(*pod).and_then(|stream| stream.view);
            let stream = Stream {
                published: watch::channel(Published::default()).1,
                latest: Published {
                    complete: true,
                    ..Published::default()
                },
                fingerprint: *fingerprint,
                view: known,
            };
            views.streams.insert((*pod).into(), stream);
        }
        views.assign();
        let view = |pod: &str| views.streams[pod].view.map_or(0, |view| view.0);
        contents.iter().map(|(pod, _)| view(pod)).collect()
    }

    #[test]
    fn each_account_has_a_credential_of_its_own_if_the_name_says_so() {
        let server = Server {
            token: Some("/tokens/{namespace}/{service_account}".into()),
            identity: Some(("/node.crt".into(), "/{service_account}.key".into())),
            ..Server::default()
        };
        let asked = server.asked_by("shop", "web");
        assert_eq!(asked.token, Some("/tokens/shop/web".into()));
        let identity = ("/node.crt".into(), "/web.key".into());
        assert_eq!(asked.identity, Some(identity));
    }

    #[test]
    fn pods_with_equal_contents_share_a_view() {
        let mut views = views();
        let seen = assigned(&mut views, &[("a", 1), ("b", 1), ("c", 2)]);
        assert!(seen[0] == seen[1] && seen[0] != seen[2], "{seen:?}");
        // All of them change: the views go on.
        assert_eq!(assigned(&mut views, &[("a", 3), ("b", 3), ("c", 4)]), seen);
    }

    #[test]
    fn a_first_configuration_without_anything_in_it_is_one() {
        let mut views = views();
        let (sender, published) = watch::channel(Published::default());
        let stream = Stream {
            published,
            latest: Published::default(),
            fingerprint: 0,
            view: None,
        };
        views.streams.insert("a".into(), stream);
        assert!(!views.take());
        for news in [true, false] {
            sender.send_replace(Published {
                complete: true,
                ..Published::default()
            });
            assert_eq!(views.take(), news);
            assert!(
                views
                    .sight(&ResourceSet::default())
                    .pods
                    .is_some_and(|pods| pods.len() == 1)
            );
        }
    }

    #[test]
    fn a_view_does_not_change_under_a_pod_that_leaves_it() {
        for changed in [0, 9] {
            let mut views = views();
            let [both, _] = assigned(&mut views, &[("a", 5), ("b", 5)])[..] else {
                panic!("two pods");
            };
            // Whichever comes first by its number, the view stays with whom it does not change for.
            let seen = assigned(&mut views, &[("a", 5), ("b", changed)]);
            assert!(seen[0] == both && seen[1] != both, "{seen:?}");
            // Together again: who is alone in a view may bring it along.
            let again = assigned(&mut views, &[("a", 5), ("b", 5)]);
            assert!(
                again[0] == again[1] && seen.contains(&again[0]),
                "{again:?}"
            );
            // Both change, in different ways: nobody may take the view along.
            let seen = assigned(&mut views, &[("a", 6), ("b", 7)]);
            assert!(!seen.contains(&again[0]) && seen[0] != seen[1], "{seen:?}");
        }
    }
}
