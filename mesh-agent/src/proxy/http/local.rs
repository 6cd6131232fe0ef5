//! Requests to pods of this node: both sides are served in one pass, without a connection between
//! them.

use std::rc::Rc;

use http::{HeaderMap, Method, StatusCode, Version, header};

use crate::config::model::listener::{Codec, Terminal};
use crate::proxy::local::{Arrival, Arrived, Speaks, Way};
use crate::proxy::stats::count;

use super::body::{RequestBody, UpstreamStream};
use super::exchange;
use super::message::{Metadata, Request};
use super::told::Told;
use super::upstream::{Answer, Sender, Serving};
use super::{Connection, Place};

/// How many endpoints a client's connection remembers the other side of.
const REMEMBERED: usize = 8;

/// The server's side of a client's connection.
pub(super) struct Here {
    arrival: Arrival,
    connection: Rc<Connection>,
}

impl Sender<'_> {
    /// The server's side, if the endpoint is a pod of this node and nothing asks for a connection
    /// of its own.
    pub(super) fn arrive(
        &self,
        serving: &Serving,
        http2: bool,
        request: &Request,
    ) -> Option<Rc<Connection>> {
        if request.method == Method::CONNECT || request.headers.contains_key(header::UPGRADE) {
            return None;
        }
        let speaks = if http2 { Speaks::Http2 } else { Speaks::Http1 };
        let way = Way {
            caught: &self.connection.caught,
            cluster: serving.cluster(),
            target: serving.target(),
            offer: self.offer(http2),
            speaks,
        };
        let known = &mut *self.connection.here.borrow_mut();
        let to = serving.target().address();
        let at = known
            .iter()
            .position(|here| here.arrival.is_to(to) && here.arrival.speaks() == speaks);
        let arrived = way.arrive(&self.connection.context, at.map(|at| &known[at].arrival));
        let arrival = match (arrived?, at) {
            (Arrived::AsBefore, Some(at)) => return Some(known[at].connection.clone()),
            (Arrived::AsBefore, None) => return None,
            (Arrived::Anew(arrival), _) => *arrival,
        };
        let Terminal::Http(hcm) = &arrival.terminal else {
            return None;
        };
        match (hcm.codec, http2) {
            (Codec::Http1, true) | (Codec::Http2, false) => return None,
            _ => {}
        }
        let place = Place {
            listener: arrival.listener.name.clone(),
            chain: arrival.chain.clone(),
            key: arrival.key,
            peer: arrival.peer.clone(),
        };
        let connection = Rc::new(Connection::new(
            self.connection.context.clone(),
            arrival.caught.clone(),
            hcm.clone(),
            place,
        ));
        let here = Here {
            arrival,
            connection: connection.clone(),
        };
        match at {
            Some(at) => known[at] = here,
            None => {
                if known.len() >= REMEMBERED {
                    known.remove(0);
                }
                known.push(here);
            }
        }
        Some(connection)
    }

    /// Has the request served by the other side.
    pub(super) async fn send_here(
        connection: &Rc<Connection>,
        http2: bool,
        request: &mut Request,
        body: RequestBody,
        last: bool,
    ) -> Answer {
        let headers = if last {
            std::mem::take(&mut request.headers)
        } else {
            request.headers.clone()
        };
        let mut headers = headers;
        let early = request.early.clone();
        let patient = connection.first().proxy_100_continue;
        if !patient
            && headers.remove(header::EXPECT).is_some()
            && let Some(early) = &early
        {
            early.put(StatusCode::CONTINUE, HeaderMap::new());
        }
        let request = Request {
            method: request.method.clone(),
            path: request.path.clone(),
            authority: request.authority.clone(),
            scheme: request.scheme,
            version: if http2 {
                Version::HTTP_2
            } else {
                Version::HTTP_11
            },
            headers,
            metadata: Metadata::default(),
            pinned: None,
            redirects: None,
            early: early.filter(|_| patient),
        };
        count(&connection.context.shared.stats.short_circuits);
        let (reply, ending) = Box::pin(exchange::handle(connection, request, body)).await;
        Answer {
            status: reply.status,
            headers: reply.headers,
            body: UpstreamStream::Here(Box::new(Told::new(reply.body, ending))),
        }
    }
}
