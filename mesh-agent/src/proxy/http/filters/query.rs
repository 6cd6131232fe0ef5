//! Parameters of a query, changed as Envoy does it: sorted by name, escaped anew
//! (`Http::Utility::QueryParamsMulti`).

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::proxy::http::message::Path;

/// Parameters by name, each with its values in their order.
#[derive(Debug, Default)]
pub(super) struct Query(BTreeMap<String, Vec<String>>);

impl Query {
    /// As they stand in a query.
    pub(super) fn parse(query: &str) -> Self {
        let mut parsed = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let values = parsed.0.entry(name.to_owned()).or_default();
            values.push(value.to_owned());
        }
        parsed
    }

    /// Sets one, instead of all values it has.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), vec![value.to_owned()]);
    }

    /// Removes one.
    pub(super) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Behind a path; `None`: that is not fit for HTTP.
    pub(super) fn on(&self, path: &str) -> Option<Path> {
        let mut whole = path.to_owned();
        let mut next = '?';
        for (name, values) in &self.0 {
            for value in values {
                whole.push(next);
                whole.push_str(name);
                whole.push('=');
                whole.push_str(value);
                next = '&';
            }
        }
        Path::new(Bytes::from(whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_set_and_removed() {
        let mut query = Query::parse("b=2&a=1&b=3&c");
        query.set("a", "x");
        query.remove("c");
        let path = query.on("/p").expect("fit for HTTP");
        assert_eq!(path.as_str(), "/p?a=x&b=2&b=3");
        query.remove("a");
        query.remove("b");
        assert_eq!(query.on("/p").expect("fit for HTTP").as_str(), "/p");
    }
}
