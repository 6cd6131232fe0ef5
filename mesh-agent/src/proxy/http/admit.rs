//! What is done to every request before it is routed.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use smallvec::SmallVec;

use crate::config::model::listener::{HttpConnectionManager, StripPort, Underscores};
use crate::config::model::route::without_port;

use super::Connection;
use super::client_cert;
use super::headers;
use super::message::{Request, text};
use super::reply::Refusal;

/// Makes a request fit for routing. Returns whose it is, as trusted proxies say.
pub(super) fn admit(
    request: &mut Request,
    hcm: &HttpConnectionManager,
    connection: &Connection,
) -> IpAddr {
    join_single_valued(&mut request.headers);
    client_cert::forward(&mut request.headers, &hcm.client_cert, connection.peer());
    if hcm.strip_trailing_host_dot
        && let Some(stripped) = strip_dot(&request.authority)
    {
        request.authority = stripped;
    }
    if hcm.strip_port != StripPort::No
        && let Some(stripped) = strip_port(&request.authority, hcm.strip_port, connection)
    {
        request.authority = stripped;
    }
    let remote = common(request, hcm, connection);
    if let Some(via) = &hcm.via {
        headers::append_list(&mut request.headers, http::header::VIA, via);
    }
    remote
}

/// Headers with an underscore in their name are left, removed, or a reason to refuse the request.
pub(super) fn underscores(
    headers: &mut HeaderMap,
    hcm: &HttpConnectionManager,
) -> Result<(), Refusal> {
    if hcm.underscores == Underscores::Allow {
        return Ok(());
    }
    let named: SmallVec<[HeaderName; 2]> = headers
        .keys()
        .filter(|name| name.as_str().contains('_'))
        .cloned()
        .collect();
    match hcm.underscores {
        Underscores::Reject if !named.is_empty() => Err(Refusal::MALFORMED),
        _ => {
            for name in named {
                headers.remove(name);
            }
            Ok(())
        }
    }
}

/// Headers of which Envoy keeps one, several values joined (its inline headers).
const SINGLE: [HeaderName; 12] = [
    http::header::ACCEPT,
    http::header::ACCEPT_ENCODING,
    http::header::AUTHORIZATION,
    http::header::CACHE_CONTROL,
    http::header::CONTENT_TYPE,
    http::header::USER_AGENT,
    http::header::TE,
    http::header::VIA,
    headers::FORWARDED_FOR,
    headers::FORWARDED_PROTO,
    headers::FORWARDED_HOST,
    headers::REQUEST_ID,
];

fn join_single_valued(headers: &mut HeaderMap) {
    if headers.len() == headers.keys_len() {
        return;
    }
    for name in SINGLE {
        headers::join(headers, name, b",");
    }
}

/// The dot stands at the end or before the port.
fn strip_dot(authority: &HeaderValue) -> Option<HeaderValue> {
    let whole = text(authority);
    let bare = without_port(whole);
    let name = bare.strip_suffix('.')?;
    HeaderValue::try_from([name, &whole[bare.len()..]].concat()).ok()
}

fn strip_port(
    authority: &HeaderValue,
    which: StripPort,
    connection: &Connection,
) -> Option<HeaderValue> {
    let whole = text(authority);
    let bare = without_port(whole);
    let port = whole.get(bare.len() + 1..)?;
    let strip = match which {
        StripPort::No => false,
        StripPort::Any => true,
        StripPort::Matching => port.parse() == Ok(connection.caught.destination.port()),
    };
    strip.then(|| HeaderValue::from_str(bare).ok()).flatten()
}

/// Headers every request gets (Envoy: `ConnectionManagerUtility::mutateRequestHeaders`).
fn common(request: &mut Request, hcm: &HttpConnectionManager, connection: &Connection) -> IpAddr {
    let headers = &mut request.headers;
    let hops = hcm.xff_num_trusted_hops as usize;
    let peer = connection.caught.peer.ip();
    let scheme = HeaderValue::from_static(connection.scheme());
    let client = if hcm.use_remote_address {
        let alone = !headers.contains_key(headers::FORWARDED_FOR);
        let trusted = match hops {
            0 => None,
            hops => forwarded_for(headers, hops - 1).map(|client| client.address),
        };
        if !hcm.skip_xff_append
            && let Ok(peer) = HeaderValue::try_from(peer.to_string())
        {
            headers::append_joined(headers, headers::FORWARDED_FOR, &peer);
        }
        if hops == 0 {
            // Whoever said so before is not trusted.
            headers.insert(headers::FORWARDED_PROTO, scheme.clone());
        }
        Some(Client {
            address: trusted.unwrap_or(peer),
            alone,
        })
    } else {
        forwarded_for(headers, hops)
    };
    if !headers.contains_key(headers::FORWARDED_PROTO) {
        headers.insert(headers::FORWARDED_PROTO, scheme);
    }
    if hcm.append_x_forwarded_port
        && (hcm.use_remote_address && hops == 0 || !headers.contains_key(headers::FORWARDED_PORT))
    {
        let port = connection.caught.destination.port();
        headers.insert(headers::FORWARDED_PORT, port.into());
    }
    let internal = client.is_some_and(|client| {
        let known = |network: &IpNet| network.contains(&client.address);
        client.alone && hcm.internal_networks.iter().any(known)
    });
    if internal {
        let yes = HeaderValue::from_static("true");
        headers.insert(headers::INTERNAL_REQUEST, yes);
    } else {
        headers::strip_internal(headers);
    }
    let at_the_edge = hcm.use_remote_address && !internal;
    if at_the_edge {
        headers::strip_at_the_edge(headers);
        let address = client.map_or(peer, |client| client.address).to_string();
        if let Ok(address) = HeaderValue::try_from(address) {
            headers.insert(headers::EXTERNAL_ADDRESS, address);
        }
    }
    if hcm.generate_request_id
        && (at_the_edge && !hcm.preserve_external_request_id
            || !headers.contains_key(headers::REQUEST_ID))
    {
        headers.insert(headers::REQUEST_ID, headers::request_id());
    }
    client.map_or(peer, |client| client.address)
}

/// Who a request is from, as proxies before say.
#[derive(Debug, Clone, Copy)]
struct Client {
    address: IpAddr,
    /// Nobody else is named.
    alone: bool,
}

/// The last address but `skip` of `x-forwarded-for`.
fn forwarded_for(headers: &HeaderMap, skip: usize) -> Option<Client> {
    let list = headers.get(headers::FORWARDED_FOR)?.to_str().ok()?;
    let address = list.rsplit(',').nth(skip)?.trim().parse().ok()?;
    Some(Client {
        address,
        alone: !list.contains(','),
    })
}
