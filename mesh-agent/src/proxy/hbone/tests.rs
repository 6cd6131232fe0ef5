//! The server's side of a tunnel, told what no honest client says. The corpus has one input a
//! file, in hexadecimal; each is replayed as it is and with bytes of it changed.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use http::{Response, StatusCode};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split};

use super::request;
use super::server::builder;

const POD: [IpAddr; 1] = [IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9))];

/// What became of the requests in some bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Replayed {
    granted: usize,
    refused: Vec<StatusCode>,
    /// The tunnel ended with an error of the client.
    broken: bool,
}

fn replay(bytes: &[u8]) -> Replayed {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let serving = async {
        let (client, server) = duplex(1 << 20);
        let (mut answers, mut requests) = split(client);
        let speak = async {
            let _ = requests.write_all(bytes).await;
            // Time passes when the server has nothing left to do.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let _ = requests.shutdown().await;
            let mut sink = Vec::new();
            let _ = answers.read_to_end(&mut sink).await;
        };
        let (replayed, ()) = tokio::join!(serve(server), speak);
        replayed
    };
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(20), serving)
            .await
            .expect("a tunnel whose client left ends")
    })
}

async fn serve(stream: tokio::io::DuplexStream) -> Replayed {
    let mut replayed = Replayed::default();
    let Ok(mut connection) = builder().handshake::<_, bytes::Bytes>(stream).await else {
        replayed.broken = true;
        return replayed;
    };
    while let Some(accepted) = connection.accept().await {
        let Ok((request, mut respond)) = accepted else {
            replayed.broken = true;
            return replayed;
        };
        let (head, _receive) = request.into_parts();
        let _ = request::Told::of(&head.headers);
        let status = match request::parse(&head, &POD) {
            Ok(connect) => {
                assert_eq!(connect.destination.ip(), POD[0]);
                replayed.granted += 1;
                StatusCode::OK
            }
            Err(refusal) => {
                replayed.refused.push(refusal.status());
                refusal.status()
            }
        };
        let mut response = Response::new(());
        *response.status_mut() = status;
        let _ = respond.send_response(response, true);
    }
    replayed
}

fn bytes_of(hexadecimal: &str) -> Vec<u8> {
    let digits: Vec<u8> = hexadecimal
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    digits
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).expect("ASCII");
            u8::from_str_radix(pair, 16).expect("hexadecimal")
        })
        .collect()
}

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/proxy/hbone/corpus");
    let mut inputs: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder)
        .expect("the corpus is here")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path.file_stem().expect("a name").to_string_lossy();
            let text = std::fs::read_to_string(&path).expect("text");
            (name.into_owned(), bytes_of(&text))
        })
        .collect();
    inputs.sort();
    inputs
}

#[test]
fn every_input_of_the_corpus_ends_as_it_should() {
    let inputs = corpus();
    assert!(inputs.len() >= 38, "{} inputs", inputs.len());
    for (name, bytes) in &inputs {
        let replayed = replay(bytes);
        let refused = |status: u16| replayed.refused.first().is_some_and(|one| *one == status);
        match &**name {
            "granted" | "headers-of-mesh" | "unknown-frames" => {
                assert_eq!((replayed.granted, replayed.broken), (1, false), "{name}");
            }
            "elsewhere" | "get" | "extended-connect" | "authority-userinfo" => {
                assert_eq!(replayed.granted, 0, "{name}");
                assert!(
                    refused(400) || replayed.refused.is_empty(),
                    "{name}: {replayed:?}"
                );
            }
            "http1"
            | "preface-other"
            | "data-on-zero"
            | "continuation-elsewhere"
            | "frame-too-large"
            | "ping-wrong-length"
            | "settings-wrong-length"
            | "settings-window-overflow"
            | "rapid-reset"
            | "hpack-bad-index" => {
                assert!(replayed.broken, "{name}: {replayed:?}");
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn changed_inputs_break_nothing(
        which in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let inputs = corpus();
        let (_, bytes) = &inputs[which.index(inputs.len())];
        let mut bytes = bytes.clone();
        // The preface stays, or nothing behind it is looked at.
        let from = 24.min(bytes.len() - 1);
        for (at, to) in changes {
            let at = from + at.index(bytes.len() - from);
            bytes[at] = to;
        }
        bytes.truncate(1 + cut.index(bytes.len()));
        replay(&bytes);
    }
}
