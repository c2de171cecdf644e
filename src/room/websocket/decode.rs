//! Decodes a client's bytes into messages: parses frames, unmasks them and puts fragments together.
//!
//! Tungstenite parses the header of a frame. The payload is gathered here, for two reasons. Tungstenite's own codec
//! reserves the length that a header announces before a byte of the payload has arrived: 14 bytes from a client would
//! cost this server the size limit. That codec also reads into a buffer of its own, which 10,000 idle connections would
//! keep; here bytes come from one buffer per thread, and an idle connection has none.

use std::io::Cursor;

use bytes::Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use super::close_reason::Violation;
use crate::protocol::Frame;
use crate::room::limits::SMALL_MESSAGE;

/// The longest header of a client's frame: two bytes, eight of length, four of mask.
const MAX_HEADER: usize = 14;

/// The longest payload of a control frame.
const MAX_CONTROL: usize = 125;

/// The code for a close frame without one: "normal".
const NORMAL: u16 = 1000;

/// "Bad gateway": registered with IANA after RFC 6455, and not known to tungstenite.
const BAD_GATEWAY: u16 = 1014;

/// One item decoded from a client's bytes.
#[derive(Debug)]
pub(super) enum Item {
    /// A complete message.
    Message(Frame),
    /// A message of more than [`SMALL_MESSAGE`] bytes has begun, with at most this many. It takes memory only as
    /// decoding goes on, so that the memory can be claimed before.
    Long(usize),
    /// A ping, to be answered with the same payload.
    Ping(Vec<u8>),
    Pong,
    /// The client closes, with this code. Nothing comes after this item.
    Close(u16),
}

/// Decodes the frames of one client; input may arrive in pieces of any size.
#[derive(Debug)]
pub(super) struct Decoder {
    max_message: u32,
    /// Payloads of messages are dropped as they arrive.
    discards: bool,
    /// Nearly always `None`: a client's messages are short and arrive in one piece.
    begun: Option<Box<Begun>>,
}

/// A header, frame or message that has begun and isn't complete.
#[derive(Debug, Default)]
struct Begun {
    /// The first `header_len` bytes of an incomplete header.
    header: [u8; MAX_HEADER],
    header_len: u8,
    /// The frame whose payload is being read.
    frame: Option<Payload>,
    /// The message that is being put together.
    message: Vec<u8>,
    message_kind: Option<Kind>,
    /// The message was reported as long already.
    is_long: bool,
    /// The payload of a control frame, which may come between the fragments of a message.
    control: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Payload {
    opcode: OpCode,
    last: bool,
    /// Rotated so that its first byte masks the next byte of the payload.
    mask: [u8; 4],
    missing: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Binary,
}

impl Decoder {
    /// A decoder for messages of up to `max_message` bytes, capped at 4 GiB.
    pub(super) fn new(max_message: usize) -> Self {
        Self { max_message: u32::try_from(max_message).unwrap_or(u32::MAX), discards: false, begun: None }
    }

    /// Drops what has arrived of a message, and from now on the payloads of messages: each of them becomes an empty
    /// message.
    pub(super) fn discard(&mut self) {
        self.discards = true;
        if let Some(begun) = &mut self.begun {
            begun.message = Vec::new();
        }
    }

    /// How many bytes of the frame that is being read are still to come.
    pub(super) fn missing(&self) -> usize {
        self.begun.as_ref().and_then(|begun| begun.frame).map_or(0, |frame| frame.missing)
    }

    /// Takes from the front of `input` what one item needs. Returns `None` when the input is used up. Must not be
    /// called again after a violation.
    pub(super) fn next(&mut self, input: &mut &[u8]) -> Result<Option<Item>, Violation> {
        let mut begun = self.begun.take().map_or_else(Begun::default, |begun| *begun);
        let item = begun.next(input, self.max_message as usize, self.discards)?;
        if begun.header_len > 0 || begun.frame.is_some() || begun.message_kind.is_some() {
            self.begun = Some(Box::new(begun));
        }
        Ok(item)
    }
}

/// Whether a part of a frame, its header or its payload, has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Complete,
    NeedsMore,
}

impl Payload {
    fn progress(&self) -> Progress {
        if self.missing == 0 { Progress::Complete } else { Progress::NeedsMore }
    }
}

impl Begun {
    fn next(&mut self, input: &mut &[u8], max_message: usize, discards: bool) -> Result<Option<Item>, Violation> {
        loop {
            if self.frame.is_none() && self.begin_frame(input, max_message)? == Progress::NeedsMore {
                return Ok(None);
            }
            if !discards && let Some(bytes) = self.becomes_long(max_message) {
                return Ok(Some(Item::Long(bytes)));
            }
            if self.fill(input, max_message, discards) == Progress::NeedsMore {
                return Ok(None);
            }
            if let Some(item) = self.end_frame()? {
                return Ok(Some(item));
            }
        }
    }

    /// Reads a header.
    fn begin_frame(&mut self, input: &mut &[u8], max_message: usize) -> Result<Progress, Violation> {
        let had = usize::from(self.header_len);
        let more = input.len().min(MAX_HEADER - had);
        self.header[had..had + more].copy_from_slice(&input[..more]);
        let mut cursor = Cursor::new(&self.header[..had + more]);
        // Parsing fails only for an opcode that doesn't exist.
        let Some((header, length)) = FrameHeader::parse(&mut cursor).map_err(|_| Violation::Opcode)? else {
            self.header_len = (had + more) as u8;
            *input = &input[more..];
            return Ok(Progress::NeedsMore);
        };
        *input = &input[cursor.position() as usize - had..];
        self.header_len = 0;
        self.frame = Some(self.admit(&header, length, max_message)?);
        Ok(Progress::Complete)
    }

    /// Checks a header against the protocol and the size limit.
    fn admit(&mut self, header: &FrameHeader, length: u64, max_message: usize) -> Result<Payload, Violation> {
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(Violation::ReservedBits);
        }
        let mask = header.mask.ok_or(Violation::Unmasked)?;
        let room = match header.opcode {
            OpCode::Control(_) if !header.is_final => return Err(Violation::FragmentedControl),
            OpCode::Control(_) => MAX_CONTROL,
            OpCode::Data(data) => {
                self.message_kind = match (data, self.message_kind) {
                    (Data::Continue, None) => return Err(Violation::StrayContinuation),
                    (Data::Continue, kind) => kind,
                    (_, Some(_)) => return Err(Violation::Interleaved),
                    (Data::Text, None) => Some(Kind::Text),
                    (Data::Binary, None) => Some(Kind::Binary),
                    (Data::Reserved(_), None) => return Err(Violation::Opcode),
                };
                max_message - self.message.len()
            }
        };
        let missing = usize::try_from(length).ok().filter(|length| *length <= room);
        let Some(missing) = missing else {
            let control = matches!(header.opcode, OpCode::Control(_));
            return Err(if control { Violation::LongControl } else { Violation::TooLarge });
        };
        Ok(Payload { opcode: header.opcode, last: header.is_final, mask, missing })
    }

    /// The most bytes that the message may have, if the frame that is being read makes it long; once for each message.
    /// The length of a fragmented message is known only with its last fragment, so until then this is `max_message`.
    fn becomes_long(&mut self, max_message: usize) -> Option<usize> {
        let frame = self.frame.filter(|frame| !self.is_long && matches!(frame.opcode, OpCode::Data(_)))?;
        let so_far = self.message.len() + frame.missing;
        self.is_long = so_far > SMALL_MESSAGE;
        let most = if frame.last { so_far } else { max_message };
        self.is_long.then_some(most)
    }

    /// Moves what has arrived of the frame's payload.
    fn fill(&mut self, input: &mut &[u8], max_message: usize, discards: bool) -> Progress {
        let Some(frame) = &mut self.frame else { return Progress::NeedsMore };
        let (arrived, after) = input.split_at(input.len().min(frame.missing));
        *input = after;
        let (into, most) = match frame.opcode {
            OpCode::Data(_) if discards => {
                frame.missing -= arrived.len();
                return frame.progress();
            }
            OpCode::Data(_) => {
                let whole = self.message.len() + frame.missing;
                (&mut self.message, if frame.last { whole } else { max_message })
            }
            OpCode::Control(_) => (&mut self.control, MAX_CONTROL),
        };
        // The capacity doubles as the message grows, up to the most that the message may have: that much was claimed.
        let (start, filled) = (into.len(), into.len() + arrived.len());
        if filled > into.capacity() {
            into.reserve_exact(filled.max((2 * into.capacity()).min(most)) - start);
        }
        into.extend_from_slice(arrived);
        unmask(&mut into[start..], frame.mask);
        frame.mask.rotate_left(arrived.len() % 4);
        frame.missing -= arrived.len();
        frame.progress()
    }

    /// Ends a complete frame. Returns `None` if its message isn't complete.
    fn end_frame(&mut self) -> Result<Option<Item>, Violation> {
        let Some(frame) = self.frame.take() else { return Ok(None) };
        match frame.opcode {
            OpCode::Control(control) => self.end_control(control).map(Some),
            OpCode::Data(_) if !frame.last => Ok(None),
            OpCode::Data(_) => self.end_message().map(Some),
        }
    }

    fn end_message(&mut self) -> Result<Item, Violation> {
        let message = std::mem::take(&mut self.message);
        self.is_long = false;
        let frame = match self.message_kind.take() {
            Some(Kind::Text) => Frame::text(String::from_utf8(message).map_err(|_| Violation::Utf8)?),
            Some(Kind::Binary) | None => Frame::binary(Bytes::from(message)),
        };
        Ok(Item::Message(frame))
    }

    fn end_control(&mut self, control: Control) -> Result<Item, Violation> {
        let payload = std::mem::take(&mut self.control);
        match control {
            Control::Ping => Ok(Item::Ping(payload)),
            Control::Pong => Ok(Item::Pong),
            Control::Close => close_code(&payload).map(Item::Close),
            Control::Reserved(_) => Err(Violation::Opcode),
        }
    }
}

fn close_code(payload: &[u8]) -> Result<u16, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(NORMAL) } else { Err(Violation::CloseFrame) };
    };
    let code = u16::from_be_bytes(*code);
    if code != BAD_GATEWAY && !CloseCode::from(code).is_allowed() {
        return Err(Violation::CloseFrame);
    }
    match std::str::from_utf8(reason) {
        Ok(_) => Ok(code),
        Err(_) => Err(Violation::Utf8),
    }
}

fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let key = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ key).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::FrameKind;

    /// A client's frame from its first byte and its payload, with an arbitrary mask.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x11, 0x22, 0x83, 0xf4];
        let mut bytes = vec![first];
        match payload.len() {
            short @ 0..=125 => bytes.push(0x80 | short as u8),
            long @ 126..=0xffff => {
                bytes.push(0xfe);
                bytes.extend((long as u16).to_be_bytes());
            }
            long => {
                bytes.push(0xff);
                bytes.extend((long as u64).to_be_bytes());
            }
        }
        bytes.extend(mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }

    fn decode_in_pieces(bytes: &[u8], piece: usize, max: usize) -> Result<Vec<Item>, Violation> {
        let mut decoder = Decoder::new(max);
        let mut items = Vec::new();
        for mut input in bytes.chunks(piece) {
            while let Some(item) = decoder.next(&mut input)? {
                if !matches!(item, Item::Long(_)) {
                    items.push(item);
                }
            }
            assert!(input.is_empty());
        }
        Ok(items)
    }

    #[test]
    fn pieces_of_any_size_give_the_same_messages() {
        let long: Vec<u8> = (0..70_000_u32).map(|i| i as u8).collect();
        let mut bytes = frame(0x01, "gr\u{fc}".as_bytes());
        bytes.extend(frame(0x89, b"now"));
        bytes.extend(frame(0x80, "\u{df}e".as_bytes()));
        bytes.extend(frame(0x82, &long));
        bytes.extend(frame(0x8a, b""));
        bytes.extend(frame(0x88, &[0x03, 0xe8, b'x']));
        for piece in [1, 2, 3, 7, 13, 14, 15, 4096, bytes.len()] {
            let items = decode_in_pieces(&bytes, piece, 70_000).unwrap();
            let [Item::Ping(ping), Item::Message(text), Item::Message(binary), Item::Pong, Item::Close(1000)] =
                &items[..]
            else {
                panic!("{piece}: {items:?}");
            };
            assert_eq!(ping, b"now");
            assert_eq!((text.kind(), &text.payload()[..]), (FrameKind::Text, "gr\u{fc}\u{df}e".as_bytes()));
            assert_eq!((binary.kind(), &binary.payload()[..]), (FrameKind::Binary, &long[..]));
        }
    }

    #[test]
    fn what_must_not_be_sent_is_named() {
        let mut unmasked = frame(0x82, b"x");
        unmasked[1] &= 0x7f;
        let joined = |first: u8, second: u8| [frame(first, b"ab"), frame(second, b"cd")].concat();
        let cases = [
            (unmasked, Violation::Unmasked),
            (frame(0xc2, b"x"), Violation::ReservedBits),
            (frame(0x83, b"x"), Violation::Opcode),
            (frame(0x8b, b"x"), Violation::Opcode),
            (frame(0x09, b"x"), Violation::FragmentedControl),
            (frame(0x89, &[0; 126]), Violation::LongControl),
            (frame(0x80, b"x"), Violation::StrayContinuation),
            (joined(0x01, 0x82), Violation::Interleaved),
            (frame(0x88, b"x"), Violation::CloseFrame),
            (frame(0x88, &1005_u16.to_be_bytes()), Violation::CloseFrame),
            (frame(0x88, &[0x03, 0xe8, 0xff]), Violation::Utf8),
            (frame(0x81, &[0xff]), Violation::Utf8),
            (frame(0x82, b"xxxx"), Violation::TooLarge),
            (joined(0x02, 0x80), Violation::TooLarge),
            (vec![0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0], Violation::TooLarge),
        ];
        for (bytes, violation) in cases {
            for piece in [1, bytes.len()] {
                assert_eq!(decode_in_pieces(&bytes, piece, 3).unwrap_err(), violation);
            }
        }
        assert_eq!(decode_in_pieces(&frame(0x82, b"xxx"), 99, 3).unwrap().len(), 1, "the limit itself is allowed");
    }

    #[test]
    fn a_registered_code_may_close() {
        let close = |code: u16| decode_in_pieces(&frame(0x88, &code.to_be_bytes()), 99, 3);
        for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999] {
            assert!(matches!(close(code).as_deref(), Ok([Item::Close(got)]) if *got == code), "{code}");
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX] {
            assert_eq!(close(code).unwrap_err(), Violation::CloseFrame, "{code}");
        }
    }

    #[test]
    fn an_announcement_costs_nothing() {
        let mut decoder = Decoder::new(16 << 20);
        let mut header = &frame(0x82, &vec![0; 16 << 20])[..20];
        let Some(Item::Long(bytes)) = decoder.next(&mut header).unwrap() else { panic!("it is long") };
        assert_eq!(bytes, 16 << 20);
        assert!(decoder.next(&mut header).unwrap().is_none());
        let begun = decoder.begun.expect("a payload is to come");
        assert!(begun.message.capacity() < 64, "{}", begun.message.capacity());
    }

    /// A message is reported as long before memory is taken for it, and once, however many frames it has.
    #[test]
    fn a_long_message_is_told_of_before_it_is_gathered() {
        let mut decoder = Decoder::new(10_000);
        let quarter = SMALL_MESSAGE / 4;
        let mut bytes = frame(0x02, &vec![0; quarter]);
        bytes.extend(frame(0x00, &vec![0; 3 * quarter]));
        bytes.extend(frame(0x00, &[7]));
        bytes.extend(frame(0x80, &[8]));
        bytes.extend(frame(0x82, &vec![9; SMALL_MESSAGE + 1]));
        bytes.extend(frame(0x82, &[0; SMALL_MESSAGE]));
        let mut input = &bytes[..];
        let mut items = Vec::new();
        while let Some(item) = decoder.next(&mut input).unwrap() {
            if let Item::Long(_) = item {
                assert!(decoder.begun.as_ref().unwrap().message.len() <= SMALL_MESSAGE);
            }
            items.push(item);
        }
        let [Item::Long(10_000), Item::Message(whole), Item::Long(exact), Item::Message(_), Item::Message(_)] =
            &items[..]
        else {
            panic!("{items:?}");
        };
        assert_eq!(whole.len(), SMALL_MESSAGE + 2);
        assert_eq!(*exact, SMALL_MESSAGE + 1);
    }

    /// A client whose messages are discarded takes no memory, and its close frame is still found.
    #[test]
    fn what_is_discarded_takes_no_memory() {
        let mut decoder = Decoder::new(1 << 20);
        let bytes = [frame(0x81, &vec![0xff; 1 << 20]), frame(0x89, b"ping"), frame(0x88, b"")].concat();
        let mut begun = &bytes[..100_000];
        assert!(matches!(decoder.next(&mut begun), Ok(Some(Item::Long(_)))));
        assert!(decoder.next(&mut begun).unwrap().is_none());
        decoder.discard();
        let mut rest = &bytes[100_000..];
        let Ok(Some(Item::Message(empty))) = decoder.next(&mut rest) else { panic!("no message") };
        assert!(empty.is_empty());
        assert!(matches!(decoder.next(&mut rest), Ok(Some(Item::Ping(_)))));
        assert!(matches!(decoder.next(&mut rest), Ok(Some(Item::Close(NORMAL)))));
    }
}
