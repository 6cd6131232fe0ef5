use super::*;

#[test]
fn a_spiffe_id_has_a_trust_domain_and_a_plain_path() {
    for (id, domain) in [
        ("spiffe://cluster.local/ns/a/sa/b", Some("cluster.local")),
        ("spiffe://td", Some("td")),
        ("spiffe://td_1-2.x/y", Some("td_1-2.x")),
        ("spiffe://", None),
        ("spiffe:///ns/a", None),
        ("spiffe://TD/ns", None),
        ("spiffe://user@td/ns", None),
        ("spiffe://td:80/ns", None),
        ("spiffe://td/", None),
        ("spiffe://td//a", None),
        ("spiffe://td/../a", None),
        ("spiffe://td/a?b", None),
        ("spiffe://td/%2e", None),
        ("http://td/a", None),
        ("", None),
    ] {
        assert_eq!(trust_domain(id), domain, "{id}");
    }
    let long = format!("spiffe://{}/a", "x".repeat(256));
    assert_eq!(trust_domain(&long), None);
}
