//! Frames of SPDY/3.1, of the server's side, as far as port-forward needs them: kubectl tunnels them through a websocket.
//!
//! No flow control: the one client that there is (Go's spdystream) neither heeds nor sends WINDOW_UPDATE. The websocket below
//! makes writers wait. The rules are those of the SPDY/3 draft, sections 2.2 and 2.6.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// The largest frame that is taken: spdystream writes what `io.Copy` gives it, 32 KiB.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// All headers of a stream, unpacked: four short ones come.
const HEADER_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;

const VERSION: u16 = 3;
const CONTROL: u16 = 0x8000;
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// Statuses of RST_STREAM.
pub(super) const PROTOCOL_ERROR: u32 = 1;
pub(super) const REFUSED_STREAM: u32 = 3;

/// The words of the dictionary that have their length before them.
const DICTIONARY_WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade user-agent \
    vary via warning www-authenticate method get status";
/// What follows them.
const DICTIONARY_WORDS_AFTER: [&str; 8] = [
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];
/// The rest, which has no lengths.
const DICTIONARY_REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
    Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
    charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary of SPDY/3 for headers (section 2.6.10.1).
fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in DICTIONARY_WORDS.split_whitespace().chain(DICTIONARY_WORDS_AFTER) {
        bytes.put_u32(word.len() as u32);
        bytes.put_slice(word.as_bytes());
    }
    bytes.put_slice(DICTIONARY_REST.as_bytes());
    bytes
}

/// What is wrong with what the other side sends; the connection cannot go on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SpdyError {
    #[error("version {0} of SPDY")]
    Version(u16),
    #[error("a frame of {0} bytes: at most {FRAME_BYTES_MAX} are taken")]
    TooLarge(usize),
    #[error("a frame of type {0} is too short")]
    Short(u16),
    #[error("headers do not unpack, or to more than {HEADER_BYTES_MAX} bytes or {HEADERS_MAX} headers")]
    Headers,
}

/// A frame that means something here.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Open {
        stream: u32,
        headers: Vec<(String, String)>,
        is_last: bool,
    },
    Data {
        stream: u32,
        payload: Bytes,
        is_last: bool,
    },
    Reset {
        stream: u32,
    },
    Ping(u32),
    GoAway,
}

/// Reads frames from bytes that come in any pieces.
pub(super) struct Reader {
    buffer: BytesMut,
    inflate: Decompress,
}

impl Reader {
    pub(super) fn new() -> Self {
        Self {
            buffer: BytesMut::new(),
            inflate: Decompress::new(true),
        }
    }

    /// Takes more bytes; read all frames before the next.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next whole frame.
    ///
    /// # Errors
    /// [`SpdyError`].
    pub(super) fn next(&mut self) -> Result<Option<Frame>, SpdyError> {
        loop {
            let Some(mut head) = self.buffer.get(..8) else {
                return Ok(None);
            };
            let (first, second) = (head.get_u32(), head.get_u32());
            let flags = (second >> 24) as u8;
            let length = (second & 0x00ff_ffff) as usize;
            if length > FRAME_BYTES_MAX {
                return Err(SpdyError::TooLarge(length));
            }
            if self.buffer.len() < 8 + length {
                return Ok(None);
            }
            self.buffer.advance(8);
            let body = self.buffer.split_to(length).freeze();
            let is_last = flags & FIN != 0;
            let frame = if first & 0x8000_0000 == 0 {
                Some(Frame::Data {
                    stream: first,
                    payload: body,
                    is_last,
                })
            } else {
                self.control((first >> 16) as u16 & !CONTROL, first as u16, body, is_last)?
            };
            if frame.is_some() {
                return Ok(frame);
            }
        }
    }

    fn control(
        &mut self,
        version: u16,
        kind: u16,
        mut body: Bytes,
        is_last: bool,
    ) -> Result<Option<Frame>, SpdyError> {
        if version != VERSION {
            return Err(SpdyError::Version(version));
        }
        let shortest = match kind {
            SYN_STREAM => 10,
            RST_STREAM | GOAWAY => 8,
            PING | HEADERS => 4,
            // SETTINGS, WINDOW_UPDATE and what later versions may add.
            _ => return Ok(None),
        };
        if body.len() < shortest {
            return Err(SpdyError::Short(kind));
        }
        let number = body.get_u32() & 0x7fff_ffff;
        Ok(match kind {
            SYN_STREAM => {
                // The associated stream, the priority and the slot.
                body.advance(6);
                Some(Frame::Open {
                    stream: number,
                    headers: headers(self.unpack(&body)?)?,
                    is_last,
                })
            }
            RST_STREAM => Some(Frame::Reset { stream: number }),
            PING => Some(Frame::Ping(number)),
            GOAWAY => Some(Frame::GoAway),
            _ => {
                // More headers, of no use, but the state of the compression goes through them.
                self.unpack(&body)?;
                None
            }
        })
    }

    fn unpack(&mut self, packed: &[u8]) -> Result<Bytes, SpdyError> {
        let mut output = Vec::with_capacity(HEADER_BYTES_MAX);
        let mut rest = packed;
        loop {
            let before = self.inflate.total_in();
            let result = self
                .inflate
                .decompress_vec(rest, &mut output, FlushDecompress::Sync);
            let taken = usize::try_from(self.inflate.total_in() - before).unwrap_or(usize::MAX);
            rest = rest.get(taken..).unwrap_or_default();
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    let known = self.inflate.set_dictionary(&dictionary());
                    known.map_err(|_| SpdyError::Headers)?;
                }
                Ok(Status::Ok | Status::BufError) if rest.is_empty() && output.len() < HEADER_BYTES_MAX => {
                    return Ok(output.into());
                }
                Ok(Status::Ok) if taken > 0 && output.len() < HEADER_BYTES_MAX => {}
                Ok(_) | Err(_) => return Err(SpdyError::Headers),
            }
        }
    }
}

/// Reads a block of headers: their number, then each name and value with its length. Names come in lower case.
fn headers(mut block: Bytes) -> Result<Vec<(String, String)>, SpdyError> {
    let count = block.try_get_u32().map_err(|_| SpdyError::Headers)? as usize;
    if count > HEADERS_MAX {
        return Err(SpdyError::Headers);
    }
    let mut text = || {
        let length = block.try_get_u32().map_err(|_| SpdyError::Headers)? as usize;
        if block.len() < length {
            return Err(SpdyError::Headers);
        }
        String::from_utf8(block.split_to(length).into()).map_err(|_| SpdyError::Headers)
    };
    (0..count)
        .map(|_| Ok((text()?.to_ascii_lowercase(), text()?)))
        .collect()
}

/// Writes frames.
pub(super) struct Writer(Compress);

impl Writer {
    pub(super) fn new() -> Self {
        let mut compress = Compress::new(Compression::default(), true);
        // Cannot fail before the first byte; if it did, clients would refuse the stream.
        let _ = compress.set_dictionary(&dictionary());
        Self(compress)
    }

    /// Accepts a stream, without headers. In the order in which they are sent: they share a state.
    pub(super) fn reply(&mut self, stream: u32) -> Bytes {
        let mut packed = Vec::with_capacity(64);
        let _ = self
            .0
            .compress_vec(&0u32.to_be_bytes(), &mut packed, FlushCompress::Sync);
        let mut body = BytesMut::with_capacity(4 + packed.len());
        body.put_u32(stream);
        body.put_slice(&packed);
        control(SYN_REPLY, &body)
    }
}

/// Writes a part of a stream, of less than 16 MB.
pub(super) fn data(stream: u32, payload: &[u8], is_last: bool) -> Bytes {
    let mut frame = BytesMut::with_capacity(8 + payload.len());
    frame.put_u32(stream & 0x7fff_ffff);
    frame.put_u32((u32::from(if is_last { FIN } else { 0 }) << 24) | payload.len() as u32);
    frame.put_slice(payload);
    frame.freeze()
}

/// Ends a stream in both directions.
pub(super) fn reset(stream: u32, status: u32) -> Bytes {
    let mut body = BytesMut::with_capacity(8);
    body.put_u32(stream);
    body.put_u32(status);
    control(RST_STREAM, &body)
}

/// Answers a ping.
pub(super) fn ping(number: u32) -> Bytes {
    control(PING, &number.to_be_bytes())
}

fn control(kind: u16, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(8 + body.len());
    frame.put_u16(CONTROL | VERSION);
    frame.put_u16(kind);
    frame.put_u32(body.len() as u32);
    frame.put_slice(body);
    frame.freeze()
}

/// The client's side, for tests.
#[cfg(test)]
pub(crate) mod client {
    use super::*;

    /// Packs the headers of streams.
    pub(crate) struct Opener(Compress);

    impl Opener {
        pub(crate) fn new() -> Self {
            Self(Writer::new().0)
        }

        /// A SYN_STREAM.
        pub(crate) fn open(&mut self, stream: u32, headers: &[(&str, &str)]) -> Bytes {
            let mut block = BytesMut::new();
            block.put_u32(headers.len() as u32);
            for text in headers.iter().flat_map(|(name, value)| [name, value]) {
                block.put_u32(text.len() as u32);
                block.put_slice(text.as_bytes());
            }
            let mut packed = Vec::with_capacity(block.len() + 1024);
            self.0
                .compress_vec(&block, &mut packed, FlushCompress::Sync)
                .unwrap();
            let mut body = BytesMut::new();
            body.put_u32(stream);
            body.put_slice(&[0; 6]);
            body.put_slice(&packed);
            control(SYN_STREAM, &body)
        }
    }

    /// A part of a stream.
    pub(crate) fn data(stream: u32, payload: &[u8], is_last: bool) -> Bytes {
        super::data(stream, payload, is_last)
    }

    /// Takes `(stream, payload, is_last)` of each data frame out of what a server sent; the rest stays.
    pub(crate) fn take_data(bytes: &mut BytesMut) -> Vec<(u32, Bytes, bool)> {
        let mut found = Vec::new();
        while let Some(mut head) = bytes.get(..8) {
            let (first, second) = (head.get_u32(), head.get_u32());
            let length = (second & 0x00ff_ffff) as usize;
            if bytes.len() < 8 + length {
                break;
            }
            bytes.advance(8);
            let body = bytes.split_to(length).freeze();
            if first & 0x8000_0000 == 0 {
                found.push((first, body, second >> 24 != 0));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::client::Opener;
    use super::*;

    fn read_all(reader: &mut Reader) -> Vec<Frame> {
        std::iter::from_fn(|| reader.next().unwrap()).collect()
    }

    fn opened(stream: u32, headers: &[(&str, &str)]) -> Frame {
        let headers = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Frame::Open {
            stream,
            headers: headers.collect(),
            is_last: false,
        }
    }

    #[test]
    fn the_dictionary_is_that_of_the_draft() {
        // Adler-32, as the draft has it in the head of every compressed stream.
        let (mut a, mut b) = (1u32, 0u32);
        for byte in dictionary() {
            a = (a + u32::from(byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        assert_eq!((dictionary().len(), (b << 16) | a), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn streams_are_read_from_pieces_of_any_size() {
        let mut opener = Opener::new();
        let (error, data_) = (
            [("streamtype", "error"), ("port", "80"), ("requestid", "0")],
            [("streamtype", "data"), ("port", "80"), ("requestid", "0")],
        );
        let wire = [
            opener.open(1, &error),
            data(1, b"", true),
            opener.open(3, &data_),
            data(3, b"hello", false),
            control(4, &[0; 4]),
            ping(7),
            reset(3, 5),
            control(GOAWAY, &[0; 8]),
        ]
        .concat();
        for size in [1, 3, 8, wire.len()] {
            let mut reader = Reader::new();
            let mut frames = Vec::new();
            for piece in wire.chunks(size) {
                reader.push(piece);
                frames.extend(read_all(&mut reader));
            }
            let part = |stream, payload: &'static [u8], is_last| Frame::Data {
                stream,
                payload: Bytes::from_static(payload),
                is_last,
            };
            let expected = [
                opened(1, &error),
                part(1, b"", true),
                opened(3, &data_),
                part(3, b"hello", false),
                Frame::Ping(7),
                Frame::Reset { stream: 3 },
                Frame::GoAway,
            ];
            assert_eq!(frames, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn replies_unpack_with_the_dictionary() {
        let mut writer = Writer::new();
        let mut reader = Reader::new();
        for stream in [1, 3, 5] {
            let reply = writer.reply(stream);
            assert_eq!(&reply[..4], &[0x80, 3, 0, 2]);
            assert_eq!(reader.unpack(&reply[12..]).unwrap().as_ref(), [0; 4]);
        }
    }

    #[test]
    fn what_is_too_large_or_nonsense_is_refused() {
        let check = |wire: &[u8], expected: SpdyError| {
            let mut reader = Reader::new();
            reader.push(wire);
            assert_eq!(reader.next(), Err(expected));
        };
        check(&[0, 0, 0, 1, 0, 255, 255, 255], SpdyError::TooLarge(0x00ff_ffff));
        check(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1], SpdyError::Version(2));
        check(&[0x80, 3, 0, 6, 0, 0, 0, 2, 0, 0], SpdyError::Short(PING));
        check(&control(SYN_STREAM, &[9; 40]), SpdyError::Headers);
        let long = "x".repeat(HEADER_BYTES_MAX);
        check(&Opener::new().open(1, &[("name", &long)]), SpdyError::Headers);
        let many = vec![("a", "b"); HEADERS_MAX + 1];
        check(&Opener::new().open(1, &many), SpdyError::Headers);
    }
}
