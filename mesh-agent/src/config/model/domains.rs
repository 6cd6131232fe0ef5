//! Which virtual host serves a host name.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use super::route::VirtualHost;

/// Virtual hosts by domain or the part of it that is not `*`.
type Hosts = HashMap<Arc<str>, Arc<VirtualHost>>;

/// Virtual hosts by domain, in Envoy's order (`RouteMatcher::findVirtualHost`): exact, longest
/// suffix (`*.b.c`), longest prefix (`a.b.*`), `*`.
#[derive(Debug, Clone, Default)]
pub struct DomainIndex {
    exact: Hosts,
    /// By the length of what follows the `*`, longest first.
    suffixes: Vec<(usize, Hosts)>,
    /// By the length of what precedes the `*`, longest first.
    prefixes: Vec<(usize, Hosts)>,
    any: Option<Arc<VirtualHost>>,
}

/// A domain that two virtual hosts claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DuplicateDomain {
    /// The domain.
    pub domain: String,
    /// Index of the virtual host that claims it second.
    pub virtual_host: usize,
    /// Index of the domain in that virtual host.
    pub index: usize,
}

impl DomainIndex {
    /// Builds the index.
    ///
    /// # Errors
    /// A domain stands twice.
    pub fn new(virtual_hosts: &[Arc<VirtualHost>]) -> Result<Self, DuplicateDomain> {
        let mut index = Self::default();
        for (number, host) in virtual_hosts.iter().enumerate() {
            for (position, domain) in host.domains.iter().enumerate() {
                let domain: Arc<str> = domain.to_ascii_lowercase().into();
                if !index.insert(&domain, host) {
                    return Err(DuplicateDomain {
                        domain: domain.to_string(),
                        virtual_host: number,
                        index: position,
                    });
                }
            }
        }
        index
            .suffixes
            .sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        index
            .prefixes
            .sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        Ok(index)
    }

    fn insert(&mut self, domain: &Arc<str>, host: &Arc<VirtualHost>) -> bool {
        if &**domain == "*" {
            return self.any.replace(host.clone()).is_none();
        }
        let (lists, part) = if let Some(suffix) = domain.strip_prefix('*') {
            (&mut self.suffixes, suffix)
        } else if let Some(prefix) = domain.strip_suffix('*') {
            (&mut self.prefixes, prefix)
        } else {
            return self.exact.insert(domain.clone(), host.clone()).is_none();
        };
        let length = part.len();
        let at = match lists.iter().position(|(known, _)| *known == length) {
            Some(at) => at,
            None => {
                lists.push((length, HashMap::new()));
                lists.len() - 1
            }
        };
        lists[at].1.insert(part.into(), host.clone()).is_none()
    }

    /// The virtual host for a host name (with its port, unless that is to be ignored).
    pub fn find(&self, host: &str) -> Option<&Arc<VirtualHost>> {
        let host: Cow<'_, str> = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(host.to_ascii_lowercase())
        } else {
            Cow::Borrowed(host)
        };
        let host = &*host;
        if let Some(found) = self.exact.get(host) {
            return Some(found);
        }
        // A wildcard stands for at least one character.
        for (length, hosts) in &self.suffixes {
            if *length < host.len()
                && host.is_char_boundary(host.len() - length)
                && let Some(found) = hosts.get(&host[host.len() - length..])
            {
                return Some(found);
            }
        }
        for (length, hosts) in &self.prefixes {
            if *length < host.len()
                && host.is_char_boundary(*length)
                && let Some(found) = hosts.get(&host[..*length])
            {
                return Some(found);
            }
        }
        self.any.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::super::headers::HeaderMutations;
    use super::super::route::RequireTls;
    use super::*;

    fn host(name: &str, domains: &[&str]) -> Arc<VirtualHost> {
        Arc::new(VirtualHost {
            name: name.into(),
            domains: domains.iter().map(|domain| (*domain).into()).collect(),
            routes: Vec::new(),
            require_tls: RequireTls::None,
            request_headers: HeaderMutations::default(),
            response_headers: HeaderMutations::default(),
            include_request_attempt_count: false,
            include_attempt_count_in_response: false,
            include_is_timeout_retry_header: false,
            rate_limits: Vec::new(),
            overrides: Default::default(),
        })
    }

    #[test]
    fn the_most_specific_domain_wins() {
        let index = DomainIndex::new(&[
            host("any", &["*"]),
            host("exact", &["A.example.com"]),
            host("suffix", &["*.example.com"]),
            host("longer", &["*.b.example.com", "*-x.example.com"]),
            host("prefix", &["foo.*"]),
        ])
        .unwrap();
        let name = |host| &*index.find(host).unwrap().name;
        assert_eq!(name("a.EXAMPLE.com"), "exact");
        assert_eq!(name("c.example.com"), "suffix");
        assert_eq!(name("c.b.example.com"), "longer");
        assert_eq!(name("q-x.example.com"), "longer");
        assert_eq!(name("foo.bar"), "prefix");
        assert_eq!(name("foo.example.com"), "suffix");
        assert_eq!(name("example.com"), "any");
        assert_eq!(name("foo."), "any");
        assert_eq!(name("a.example.com:80"), "any");
        assert_eq!(name("ä.example.com"), "suffix");
    }

    #[test]
    fn a_domain_belongs_to_one_virtual_host() {
        let error = DomainIndex::new(&[host("a", &["x", "*.y"]), host("b", &["z", "*.Y"])]);
        let expected = DuplicateDomain {
            domain: "*.y".into(),
            virtual_host: 1,
            index: 1,
        };
        assert_eq!(error.unwrap_err(), expected);
    }
}
