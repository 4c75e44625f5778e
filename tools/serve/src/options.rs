//! [`Options`]: what a server is told.

use std::path::PathBuf;
use std::time::Duration;

use models::scheduler::CheckpointLimits;

/// How a server behaves, and what bounds it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Requests that are worked on at once.
    pub n_slots: usize,
    /// Tokens of prompt and answer together, of one request.
    pub n_ctx: usize,
    /// Requests that wait for a slot; more are answered with 429.
    pub max_queue: usize,
    /// Name of the model in replies.
    pub alias: String,
    /// Keys, of which a request needs one; without keys it needs none.
    pub keys: Vec<String>,
    /// Names by which clients may call the server, besides those of this machine and the address that it is bound to.
    pub allowed_hosts: Vec<String>,
    /// The host that the server is bound to.
    pub host: String,
    /// The one foreign origin whose pages may use the server.
    pub cors_origin: Option<String>,
    /// Whether the page is served.
    pub has_page: bool,
    /// Whether `/slots` is served.
    pub has_slots: bool,
    /// Bytes of a request's body.
    pub max_upload_bytes: usize,
    /// Bytes of bodies and decoded audio of all requests together.
    pub max_held_bytes: usize,
    /// Bytes that the states of all sequences may have together, where that is bounded: [`crate::Memory`] says what they need.
    pub max_state_bytes: Option<usize>,
    /// Bytes of the encoder's vectors of clips that are kept for when the same clip comes again.
    pub audio_cache_bytes: usize,
    /// Whether slots keep the sequence of their last request, for prompts that begin as it did.
    pub keeps_prompts: bool,
    /// Bounds of the checkpoints by which models with recurrent states come back to where prompts part.
    pub checkpoints: CheckpointLimits,
    /// The part of a prompt that a slot must have for it to go there, and not where the slot was used least recently.
    pub slot_similarity: f32,
    /// Where what slots keep may be saved, and read from.
    pub slot_save_path: Option<PathBuf>,
    /// Seconds of a clip.
    pub max_audio_s: u32,
    /// Connections at once.
    pub max_connections: usize,
    /// Threads that decode audio.
    pub threads_http: usize,
    /// Time for the head of a request.
    pub header_time: Duration,
    /// Time for the body of a request.
    pub body_time: Duration,
    /// Time for an answer.
    pub timeout: Duration,
    /// A client that reads nothing for so long is gone.
    pub stall: Duration,
    /// Time for what is being answered when the server is to end.
    pub shutdown_time: Duration,
}

impl Default for Options {
    fn default() -> Self {
        const MIB: usize = 1 << 20;
        Self {
            n_slots: 4,
            n_ctx: 4096,
            max_queue: 64,
            alias: "tympan".into(),
            keys: Vec::new(),
            allowed_hosts: Vec::new(),
            host: "127.0.0.1".into(),
            cors_origin: None,
            has_page: true,
            has_slots: true,
            max_upload_bytes: 200 * MIB,
            max_held_bytes: 1024 * MIB,
            max_state_bytes: None,
            audio_cache_bytes: 64 * MIB,
            keeps_prompts: true,
            checkpoints: CheckpointLimits::default(),
            slot_similarity: 0.1,
            slot_save_path: None,
            max_audio_s: 3 * 3600,
            max_connections: 256,
            threads_http: 2,
            header_time: Duration::from_secs(10),
            body_time: Duration::from_secs(120),
            timeout: Duration::from_secs(3600),
            stall: Duration::from_secs(10),
            shutdown_time: Duration::from_secs(30),
        }
    }
}
