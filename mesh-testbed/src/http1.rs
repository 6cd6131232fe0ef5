//! HTTP/1 responses out of raw bytes: a reader of tests' own, which hides nothing.

/// One response as it stood on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RawResponse {
    /// The status code.
    pub status: u16,
    /// `HTTP/1.1`
    pub version: String,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// The body, chunks joined.
    pub body: Vec<u8>,
    /// Trailers after the last chunk.
    pub trailers: Vec<(String, String)>,
    /// Whether the body ended as announced; a body that lasts to the end of the connection is
    /// whole when that ends.
    pub whole: bool,
}

impl RawResponse {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Reads the responses to requests with the given methods, interim ones (1xx but 101) included.
/// `closed`: no more bytes will come. Returns them, and whether each request has its answer.
pub fn responses(bytes: &[u8], methods: &[String], closed: bool) -> (Vec<RawResponse>, bool) {
    let mut rest = bytes;
    let mut found = Vec::new();
    let mut methods = methods.iter();
    let mut method = methods.next();
    while let Some(asked) = method {
        let Some((mut response, after)) = head(rest) else {
            return (found, false);
        };
        rest = after;
        if response.status / 100 == 1 && response.status != 101 {
            response.whole = true;
            found.push(response);
            continue;
        }
        let bodyless = asked == "HEAD"
            || matches!(response.status, 101 | 204 | 304)
            || (asked == "CONNECT" && response.status / 100 == 2);
        if bodyless {
            response.whole = true;
        } else if response.header("transfer-encoding") == Some("chunked") {
            rest = chunked(rest, &mut response);
        } else if let Some(length) = response
            .header("content-length")
            .and_then(|length| length.parse::<usize>().ok())
        {
            let there = length.min(rest.len());
            response.body = rest[..there].to_vec();
            response.whole = there == length;
            rest = &rest[there..];
        } else {
            response.body = rest.to_vec();
            response.whole = closed;
            rest = &[];
        }
        let whole = response.whole;
        found.push(response);
        if !whole {
            return (found, false);
        }
        method = methods.next();
    }
    (found, true)
}

fn head(bytes: &[u8]) -> Option<(RawResponse, &[u8])> {
    let end = find(bytes, b"\r\n\r\n")?;
    let text = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = text.split("\r\n");
    let mut start = lines.next()?.splitn(3, ' ');
    let version = start.next()?.to_owned();
    let status = start.next()?.parse().ok()?;
    let headers = lines.filter_map(field).collect();
    let response = RawResponse {
        status,
        version,
        headers,
        ..RawResponse::default()
    };
    Some((response, &bytes[end + 4..]))
}

fn field(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    Some((name.to_ascii_lowercase(), value.trim().to_owned()))
}

fn chunked<'a>(mut rest: &'a [u8], response: &mut RawResponse) -> &'a [u8] {
    loop {
        let Some(end) = find(rest, b"\r\n") else {
            return rest;
        };
        let size = std::str::from_utf8(&rest[..end]).unwrap_or_default();
        let size = size.split(';').next().unwrap_or_default();
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else {
            return rest;
        };
        let data = &rest[end + 2..];
        if size == 0 {
            let trailers = &rest[end..];
            let Some(end) = find(trailers, b"\r\n\r\n") else {
                return rest;
            };
            let text = String::from_utf8_lossy(&trailers[..end]);
            response.trailers = text.split("\r\n").filter_map(field).collect();
            response.whole = true;
            return &trailers[end + 4..];
        }
        if data.len() < size + 2 {
            response
                .body
                .extend_from_slice(&data[..data.len().min(size)]);
            return &[];
        }
        response.body.extend_from_slice(&data[..size]);
        rest = &data[size + 2..];
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn methods(methods: &[&str]) -> Vec<String> {
        methods.iter().map(|method| (*method).to_owned()).collect()
    }

    #[test]
    fn responses_are_told_apart() {
        let bytes =
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
            3\r\nabc\r\n0\r\nX: y\r\n\r\nHTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno";
        let (found, all) = responses(bytes, &methods(&["GET", "GET"]), false);
        assert!(all);
        assert_eq!(found.len(), 3);
        assert_eq!(found[1].body, b"abc");
        assert_eq!(found[1].trailers, [("x".to_owned(), "y".to_owned())]);
        assert_eq!((found[2].status, &found[2].body[..]), (404, &b"no"[..]));
    }

    #[test]
    fn an_unfinished_response_is_told() {
        let bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc";
        let (found, all) = responses(bytes, &methods(&["GET"]), false);
        assert!(!all && !found[0].whole);
        let (found, all) = responses(bytes, &methods(&["HEAD"]), false);
        assert!(all && found[0].whole);
    }

    #[test]
    fn a_body_may_last_to_the_end_of_the_connection() {
        let bytes = b"HTTP/1.0 200 OK\r\n\r\nabc";
        assert!(!responses(bytes, &methods(&["GET"]), false).1);
        assert!(responses(bytes, &methods(&["GET"]), true).1);
    }
}
