//! Counting gRPC's messages in a stream of bytes.

/// How far a stream has come (gRPC over HTTP/2: a byte of flags, four of length, the message).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Messages {
    count: u64,
    /// Bytes of the current message's head that were seen.
    seen: u8,
    /// Its length, as far as it was seen.
    length: u32,
    /// Bytes of it that are still to come.
    left: u64,
}

impl Messages {
    /// Takes the next bytes.
    pub(super) fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len() as u64);
                self.left -= skipped;
                bytes = &bytes[skipped as usize..];
                continue;
            }
            if self.seen > 0 {
                self.length = self.length << 8 | u32::from(bytes[0]);
            }
            self.seen += 1;
            bytes = &bytes[1..];
            if self.seen == 5 {
                self.count += 1;
                self.left = u64::from(self.length);
                (self.seen, self.length) = (0, 0);
            }
        }
    }

    /// How many messages have begun.
    pub(super) fn count(self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_are_counted_wherever_the_stream_is_cut(
            lengths in proptest::collection::vec(0usize..70, 0..12),
            cuts in proptest::collection::vec(1usize..50, 1..40),
        ) {
            let mut stream = Vec::new();
            for length in &lengths {
                stream.push(0);
                stream.extend_from_slice(&(*length as u32).to_be_bytes());
                stream.resize(stream.len() + length, 0xff);
            }
            let mut messages = Messages::default();
            let mut rest = &stream[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                messages.take(now);
                rest = later;
            }
            prop_assert_eq!(messages.count(), lengths.len() as u64);
        }
    }
}
