//! Frames in a byte stream that is cut anywhere.

use bytes::Bytes;
use lanecast::protocol::stream::{MAX_STREAM_FRAME, StreamDecoder, StreamError};
use lanecast::protocol::{Frame, FrameKind};

/// What a reader of v2 finds in the frames.
type Read = (FrameKind, Bytes);

fn read(frame: &Frame) -> Read {
    assert!(frame.head().is_empty());
    (frame.kind(), frame.payload().clone())
}

fn take_all(decoder: &mut StreamDecoder) -> Result<Vec<Read>, StreamError> {
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next_frame()? {
        frames.push(read(&frame));
    }
    Ok(frames)
}

fn prefix(kind: u8, len: u32) -> Vec<u8> {
    let [a, b, c, d] = len.to_le_bytes();
    vec![kind, a, b, c, d]
}

fn random_frame(random: &mut fastrand::Rng) -> (Frame, Read) {
    let len = match random.u32(..8) {
        0 => 0,
        1 => random.usize(..5000),
        _ => random.usize(..40),
    };
    let payload: Bytes = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
    match random.u32(..4) {
        0 => {
            let text = "ö".repeat(len / 2);
            (Frame::text(text.clone()), (FrameKind::Text, text.into()))
        }
        1 => (Frame::binary(payload.clone()), (FrameKind::Binary, payload)),
        _ => {
            let (channel, time) = (random.u64(..), random.u64(..));
            let mut frame = Frame::message_data(channel, time, payload.clone());
            frame.set_subscription_id(random.u32(..));
            let parts = [&[1], &channel.to_le_bytes()[..], &time.to_le_bytes(), &payload].concat();
            (frame, (FrameKind::Binary, parts.into()))
        }
    }
}

#[test]
fn frames_survive_being_cut_anywhere() {
    let mut random = fastrand::Rng::with_seed(20);
    for round in 0..400 {
        // 1. Frames, and their plain concatenation.
        let (mut wire, mut expected) = (Vec::new(), Vec::new());
        for _ in 0..random.usize(1..20) {
            let (frame, read) = random_frame(&mut random);
            let before = wire.len();
            frame.append_to_stream(&mut wire);
            assert_eq!(wire.len() - before, frame.stream_len());
            let kind = if read.0 == FrameKind::Text { 1 } else { 2 };
            let plain = [prefix(kind, read.1.len() as u32), read.1.to_vec()].concat();
            assert_eq!(wire[before..], plain);
            expected.push(read);
        }
        // 2. The bytes are cut at random, sometimes into empty chunks, and read after each chunk, or after some.
        let longest = [1, 3, 10, 1000, usize::MAX][round % 5];
        let mut wire = Bytes::from(wire);
        let (mut decoder, mut found) = (StreamDecoder::default(), Vec::new());
        while !wire.is_empty() {
            decoder.push(wire.split_to(random.usize(0..=wire.len().min(longest))));
            if random.bool() {
                found.extend(take_all(&mut decoder).unwrap());
            }
        }
        found.extend(take_all(&mut decoder).unwrap());
        assert_eq!(found, expected);
        assert!(!decoder.is_mid_frame());
    }
}

#[test]
fn a_frame_within_one_chunk_shares_its_memory() {
    let mut wire = Vec::new();
    Frame::text("{}").append_to_stream(&mut wire);
    Frame::binary(Bytes::from(vec![7; 1000])).append_to_stream(&mut wire);
    let wire = Bytes::from(wire);
    // 1. Both frames are in one chunk.
    let mut decoder = StreamDecoder::default();
    decoder.push(wire.clone());
    let [first, second] = &take_all(&mut decoder).unwrap()[..] else { panic!("not two") };
    assert_eq!(first.1.as_ptr(), wire[5..].as_ptr());
    assert_eq!(second.1.as_ptr(), wire[12..].as_ptr());
    // 2. The prefix is in one chunk, the payload in the next.
    decoder.push(wire.slice(..10));
    assert_eq!(take_all(&mut decoder).unwrap().len(), 1);
    decoder.push(wire.slice(10..));
    assert_eq!(take_all(&mut decoder).unwrap()[0].1.as_ptr(), wire[12..].as_ptr());
}

/// Copying everything again with each byte would take hours.
#[test]
fn the_largest_frame_may_come_byte_by_byte() {
    let mut wire = Vec::new();
    let frame = Frame::binary(Bytes::from(vec![7; MAX_STREAM_FRAME]));
    frame.append_to_stream(&mut wire);
    assert_eq!(frame.stream_len(), MAX_STREAM_FRAME + 5);
    let wire = Bytes::from(wire);
    let mut decoder = StreamDecoder::default();
    for at in 0..wire.len() - 1 {
        decoder.push(wire.slice(at..=at));
        assert!(decoder.next_frame().unwrap().is_none());
    }
    assert!(decoder.is_mid_frame());
    decoder.push(wire.slice(wire.len() - 1..));
    let whole = decoder.next_frame().unwrap().expect("it is complete");
    assert!(whole.payload() == frame.payload());
    // The result is the same in large pieces, and in one.
    for piece in [1 << 20, wire.len()] {
        let mut decoder = StreamDecoder::default();
        wire.chunks(piece).for_each(|chunk| decoder.push(wire.slice_ref(chunk)));
        assert!(decoder.next_frame().unwrap().expect("it is complete").payload() == frame.payload());
    }
}

#[test]
fn a_frame_one_byte_too_large_is_refused_at_its_prefix() {
    let too_large = StreamError::TooLarge { bytes: MAX_STREAM_FRAME as u64 + 1 };
    // 1. A valid frame comes, then only the prefix of one that is too large.
    let mut decoder = StreamDecoder::default();
    decoder.push([prefix(1, 2), b"{}".to_vec(), prefix(2, MAX_STREAM_FRAME as u32 + 1)].concat().into());
    assert_eq!(decoder.next_frame().unwrap().expect("it is complete").payload(), "{}");
    assert_eq!(decoder.next_frame().unwrap_err(), too_large);
    // 2. The decoder stays failed, whatever comes.
    decoder.push([prefix(1, 2), b"{}".to_vec()].concat().into());
    assert_eq!(decoder.next_frame().unwrap_err(), too_large);
    // 3. The same with the longest length that a prefix can announce.
    let mut decoder = StreamDecoder::default();
    decoder.push(prefix(2, u32::MAX).into());
    assert_eq!(decoder.next_frame().unwrap_err(), StreamError::TooLarge { bytes: u64::from(u32::MAX) });
}

#[test]
fn an_unknown_kind_is_refused() {
    for kind in [0, 3, 255] {
        let mut decoder = StreamDecoder::default();
        // The kind is refused before the length is looked at.
        decoder.push(prefix(kind, u32::MAX).into());
        assert_eq!(decoder.next_frame().unwrap_err(), StreamError::UnknownKind(kind));
        assert_eq!(decoder.next_frame().unwrap_err(), StreamError::UnknownKind(kind));
    }
}

#[test]
fn a_truncated_end_is_no_frame() {
    let mut wire = Vec::new();
    Frame::text("first").append_to_stream(&mut wire);
    let whole = wire.len();
    Frame::message_data(1, 2, Bytes::from_static(b"second")).append_to_stream(&mut wire);
    let wire = Bytes::from(wire);
    for end in 0..=wire.len() {
        let mut decoder = StreamDecoder::default();
        decoder.push(wire.slice(..end));
        let complete = usize::from(end >= whole) + usize::from(end == wire.len());
        assert_eq!(take_all(&mut decoder).unwrap().len(), complete);
        assert_eq!(decoder.is_mid_frame(), ![0, whole, wire.len()].contains(&end));
    }
}

#[test]
fn no_bytes_make_the_decoder_panic() {
    let mut random = fastrand::Rng::with_seed(21);
    for _ in 0..20_000 {
        let mut bytes = vec![0; random.usize(..48)];
        random.fill(&mut bytes);
        if let Some(kind) = bytes.first_mut() {
            *kind %= 4;
        }
        if let Some(len) = bytes.get_mut(2..5) {
            len.fill(0);
        }
        let mut decoder = StreamDecoder::default();
        let bytes = Bytes::from(bytes);
        let middle = random.usize(..=bytes.len());
        for part in [bytes.slice(..middle), bytes.slice(middle..)] {
            decoder.push(part);
            let _ = take_all(&mut decoder);
        }
    }
}
