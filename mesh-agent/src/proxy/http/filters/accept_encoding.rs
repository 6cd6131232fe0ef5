//! What a client accepts, and which of it we have (RFC 9110, 12.5.3; Envoy:
//! `CompressorFilter::chooseEncoding`).

/// An encoding on offer. `first` wins where the client likes several equally.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offer {
    pub(super) encoding: &'static str,
    pub(super) first: bool,
}

/// The encoding to send; `None`: the body stays as it is.
pub(super) fn choose(accepts: &str, offers: &[Offer]) -> Option<&'static str> {
    let mut pairs: Vec<(&str, f64)> = Vec::new();
    for token in accepts.split(',') {
        let mut parts = token.split(';');
        let name = parts.next().unwrap_or_default().trim();
        let weight = parts.find_map(|part| {
            let (key, value) = part.trim().split_once('=')?;
            key.trim().eq_ignore_ascii_case("q").then(|| value.trim())
        });
        let weight = match weight {
            None => Some(1.0),
            // Envoy takes more than 1, too.
            Some(weight) => weight.parse().ok().filter(|q| *q >= 0.0),
        };
        if let Some(weight) = weight {
            pairs.push((name, weight));
        }
    }
    let mut best: Option<(&str, f64)> = None;
    let known = |name: &str| {
        name == "*" || name == "identity" || offers.iter().any(|offer| offer.encoding == name)
    };
    for (name, weight) in pairs.iter().filter(|(name, _)| known(name)) {
        let better = match best {
            None => *weight > 0.0,
            Some((_, most)) => *weight > most,
        };
        if better {
            best = Some((name, *weight));
        }
    }
    let (name, weight) = best?;
    // Of those liked equally, the one that is marked.
    let marked = offers.iter().find(|offer| {
        offer.first
            && pairs
                .iter()
                .any(|(name, q)| *name == offer.encoding && (*q - weight).abs() < f64::EPSILON)
    });
    if let Some(offer) = marked {
        return Some(offer.encoding);
    }
    match name {
        "identity" => None,
        "*" => {
            let refused = |encoding: &str| {
                pairs
                    .iter()
                    .any(|(name, weight)| *name == encoding && *weight == 0.0)
            };
            let mut offers = offers.iter().filter(|offer| !refused(offer.encoding));
            offers.next().map(|offer| offer.encoding)
        }
        name => offers
            .iter()
            .find(|offer| offer.encoding == name)
            .map(|offer| offer.encoding),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(accepts: &str, encodings: &[&'static str]) -> Option<&'static str> {
        let offers: Vec<Offer> = encodings
            .iter()
            .map(|encoding| Offer {
                encoding,
                first: false,
            })
            .collect();
        choose(accepts, &offers)
    }

    #[test]
    fn the_heaviest_of_what_both_know_wins() {
        let both = ["gzip", "br"];
        assert_eq!(chosen("gzip", &both), Some("gzip"));
        assert_eq!(chosen("br;q=0.5, gzip;q=0.4", &both), Some("br"));
        assert_eq!(chosen("deflate, br", &both), Some("br"));
        assert_eq!(chosen("deflate", &both), None);
        assert_eq!(chosen("gzip;q=0", &both), None);
        assert_eq!(chosen("identity, gzip;q=0.5", &both), None);
        assert_eq!(chosen("*", &both), Some("gzip"));
        assert_eq!(chosen("", &both), None);
        assert_eq!(chosen("gzip;q=2, br", &both), Some("gzip"));
        assert_eq!(chosen("gzip;q=x, br;q=0.1", &both), Some("br"));
    }

    #[test]
    fn a_marked_offer_wins_among_equals() {
        let offers = [
            Offer {
                encoding: "gzip",
                first: false,
            },
            Offer {
                encoding: "br",
                first: true,
            },
        ];
        assert_eq!(choose("gzip, br", &offers), Some("br"));
        assert_eq!(choose("gzip, br;q=0.9", &offers), Some("gzip"));
    }
}
