//! AVI files around chunks of sound. Source: Microsoft, AVI RIFF File Reference.

/// A stream of an AVI file.
pub struct Stream {
    /// `auds`, `vids`.
    pub kind: [u8; 4],
    /// A WAVEFORMATEX, for sound.
    pub format: Vec<u8>,
    /// A unit lasts `scale / rate` seconds.
    pub scale: u32,
    /// See `scale`.
    pub rate: u32,
    /// Units before the sound.
    pub start: u32,
    /// Units that are announced.
    pub length: u32,
    /// Bytes of a unit; 0 where it is a chunk.
    pub unit_bytes: u32,
    /// The chunks.
    pub chunks: Vec<Vec<u8>>,
}

impl Stream {
    /// Sound in chunks of any length, with `unit_bytes` to a unit, of which there are `rate` a second.
    pub fn sound(format: Vec<u8>, rate: u32, unit_bytes: u32, chunks: Vec<Vec<u8>>) -> Self {
        let bytes: usize = chunks.iter().map(Vec::len).sum();
        let length = (bytes as u32).checked_div(unit_bytes).unwrap_or(chunks.len() as u32);
        Self { kind: *b"auds", format, scale: 1, rate, start: 0, length, unit_bytes, chunks }
    }

    /// Pictures, 25 a second.
    pub fn film(pictures: Vec<Vec<u8>>) -> Self {
        let length = pictures.len() as u32;
        Self {
            kind: *b"vids",
            format: vec![0; 40],
            scale: 1,
            rate: 25,
            start: 0,
            length,
            unit_bytes: 0,
            chunks: pictures,
        }
    }

    fn headers(&self) -> Vec<u8> {
        let words = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        let rest =
            words(&[0, 0, 0, self.scale, self.rate, self.start, self.length, 0, u32::MAX, self.unit_bytes, 0, 0]);
        let header = [&self.kind[..], b"TEST", &rest].concat();
        list(b"LIST", b"strl", &[chunk(b"strh", &header), chunk(b"strf", &self.format)].concat())
    }
}

/// A WAVEFORMATEX.
pub fn format(tag: u16, n_channels: u16, rate_hz: u32, block_bytes: u16, bits: u16, rest: &[u8]) -> Vec<u8> {
    let mut format = [tag.to_le_bytes(), n_channels.to_le_bytes()].concat();
    format.extend([rate_hz.to_le_bytes(), (rate_hz * u32::from(block_bytes)).to_le_bytes()].concat());
    format.extend([block_bytes, bits, rest.len() as u16].iter().flat_map(|half| half.to_le_bytes()));
    format.extend(rest);
    format
}

/// A chunk, padded.
pub fn chunk(tag: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = [&tag[..], &(body.len() as u32).to_le_bytes(), body].concat();
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    bytes
}

/// A list of chunks, or a file.
pub fn list(outer: &[u8; 4], kind: &[u8; 4], chunks: &[u8]) -> Vec<u8> {
    chunk(outer, &[&kind[..], chunks].concat())
}

/// The chunks of all streams in turn, each in a list of its own where that is asked for.
fn chunks(streams: &[Stream], lists: bool) -> Vec<Vec<u8>> {
    let n = streams.iter().map(|s| s.chunks.len()).max().unwrap_or(0);
    let mut all = Vec::new();
    for i in 0..n {
        let mut turn = Vec::new();
        for (number, stream) in streams.iter().enumerate() {
            let kind = if &stream.kind == b"auds" { "wb" } else { "dc" };
            let tag = format!("{number:02}{kind}");
            let tag = tag.as_bytes().first_chunk().expect("four letters");
            turn.extend(stream.chunks.get(i).map(|body| chunk(tag, body)).unwrap_or_default());
        }
        all.push(if lists { list(b"LIST", b"rec ", &turn) } else { turn });
    }
    all
}

/// The headers of a file.
fn headers(streams: &[Stream]) -> Vec<u8> {
    let headers: Vec<u8> = streams.iter().flat_map(Stream::headers).collect();
    list(b"LIST", b"hdrl", &[chunk(b"avih", &[0; 56]), headers].concat())
}

/// A file of these streams.
pub fn file(streams: &[Stream]) -> Vec<u8> {
    let movi = list(b"LIST", b"movi", &chunks(streams, false).concat());
    list(b"RIFF", b"AVI ", &[headers(streams), movi, chunk(b"idx1", &[0; 32])].concat())
}

/// The same in lists of the chunks that belong together, half of them in a second part as OpenDML has it.
pub fn file_in_parts(streams: &[Stream]) -> Vec<u8> {
    let chunks = chunks(streams, true);
    let (first, second) = chunks.split_at(chunks.len() / 2);
    let movi = |chunks: &[Vec<u8>]| list(b"LIST", b"movi", &chunks.concat());
    let first = [headers(streams), movi(first), chunk(b"idx1", &[0; 32])].concat();
    [list(b"RIFF", b"AVI ", &first), list(b"RIFF", b"AVIX", &movi(second))].concat()
}
