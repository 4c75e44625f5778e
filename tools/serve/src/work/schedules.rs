//! Random schedules of [`Core`], by a clock of their own: no sockets, no threads, no waiting.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use engine::parallel::Serial;
use engine::session::{Session, SessionOptions};
use models::generate::{Request, Writer};
use models::sample::Sampling;
use models::scheduler::{CheckpointLimits, Scheduler, Seat};
use models::transcription::Listener;
use models::{LoadOptions, Loaded, transcribe};

use super::{Core, CoreOptions};
use crate::figures::Figures;
use crate::mailbox::{Reader, mailbox};
use crate::work::task::Task;
use crate::work::{Answer, Clip, Clock, Job, Reply, SpeechWork, TextWork, Work};

const N_SLOTS: usize = 4;
const STALL: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(20);

/// Numbers that look random. Source: Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

fn model(name: &str) -> Loaded {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name);
    models::load(vec![convert::to_memory(&*path).unwrap()], LoadOptions::default()).unwrap()
}

fn scheduler(model: &Loaded) -> Scheduler {
    let threads = std::num::NonZeroUsize::new(1);
    let backend = backends::open("cpu", &backends::Options { threads }).unwrap();
    let options = SessionOptions { n_slots: N_SLOTS, n_ctx: 256, ..SessionOptions::default() };
    Scheduler::new(Session::open(Arc::clone(&model.model), &model.weights, &[backend], options).unwrap())
}

/// What a client asks, and how it behaves.
#[derive(Clone, Copy)]
struct Wish {
    prompt: &'static str,
    n: usize,
    /// Goes away after so many steps.
    leaves_after: Option<u64>,
    /// Asks for a stream and reads nothing of it.
    is_deaf: bool,
    deadline: Duration,
    /// Wants this slot and no other.
    slot: Option<usize>,
    /// Uses what slots keep, and leaves something.
    keeps: bool,
}

fn work(writer: &Writer, wish: Wish) -> Work {
    let ids = writer.prompt(wish.prompt);
    let request = Request {
        prompt: &ids,
        max_tokens: wish.n,
        sampling: Sampling::default(),
        ignore_stop: true,
        stop: &[],
        prompt_logits: false,
    };
    let (continuation, decoding) = writer.begin(&request).unwrap();
    let boundaries = vec![ids.len() / 2, ids.len() - 1];
    let seat = Seat { place: wish.slot, reuses: wish.keeps, keeps: wish.keeps, boundaries };
    let work = TextWork::new(continuation, decoding, ids.len(), ids.len() + wish.n);
    Work::Text(Box::new(work.streamed(wish.is_deaf).seated(seat)))
}

fn core_options() -> CoreOptions {
    CoreOptions {
        n_slots: N_SLOTS,
        stall: STALL,
        timeout: TIMEOUT,
        state_bytes: None,
        audio_cache_bytes: 0,
        checkpoints: CheckpointLimits { n: 3, bytes: 1 << 16 },
        similarity: 0.1,
    }
}

/// Whether a task takes any slot.
fn is_flexible(task: &Task) -> bool {
    matches!(&task.work, Work::Text(work) if work.seat().place.is_none())
}

/// A client that is there.
struct Client {
    wish: Wish,
    reader: Reader<Reply>,
    came: u64,
}

/// How a client's request ended.
#[derive(PartialEq, Debug)]
enum Seen {
    Done(Vec<u32>),
    Failed(u16),
}

fn read(reader: &mut Reader<Reply>) -> Option<Option<Seen>> {
    match reader.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Pending => None,
        Poll::Ready(None) => Some(None),
        Poll::Ready(Some(Reply::Piece(_))) => read(reader),
        Poll::Ready(Some(Reply::Failed(error))) => Some(Some(Seen::Failed(error.status))),
        Poll::Ready(Some(Reply::Done(answer))) => match *answer {
            Answer::Text(answer) => Some(Some(Seen::Done(answer.generated.ids))),
            Answer::Speech(_) | Answer::Slot(_) => panic!("nobody asked for that"),
        },
    }
}

/// With attention alone, which is cut anywhere, and with recurrent states, which come back to checkpoints.
#[test]
fn ten_thousand_random_requests_end_once_each_and_in_order() {
    random_requests("tiny-qwen3-asr", 10_000);
    random_requests("tiny-lfm2-audio", 5_000);
}

fn random_requests(name: &str, n_jobs: usize) {
    let model = model(name);
    let writer = Writer::open(&model).unwrap();
    let micros = Arc::new(AtomicU64::new(0));
    let clock: Clock = {
        let micros = Arc::clone(&micros);
        Arc::new(move || Duration::from_micros(micros.load(Ordering::SeqCst)))
    };
    // Two long sequences fit, or some short ones.
    let options = core_options();
    let mut probe = Core::new(scheduler(&model), options, Arc::clone(&clock), Arc::default());
    let most = probe.state_bytes(80);
    let options = CoreOptions { state_bytes: Some(most), ..options };
    let figures = Arc::new(Figures::default());
    let mut core = Core::new(scheduler(&model), options, Arc::clone(&clock), figures);

    let mut rng = Rng(7);
    let mut clients: BTreeMap<u64, Client> = BTreeMap::new();
    let mut answers: BTreeMap<(&str, usize), Vec<u32>> = BTreeMap::new();
    let (mut n_came, mut n_ended, mut n_steps) = (0, 0, 0);
    let (mut n_done, mut n_late, mut n_left, mut n_deaf) = (0, 0, 0, 0);
    let mut last_admitted = None;
    let mut gone: Vec<u64> = Vec::new();
    while n_ended < n_jobs {
        while n_came < n_jobs && clients.len() < 40 && rng.below(3) > 0 {
            let now = clock();
            let wish = Wish {
                prompt: ["one", "two three four", "please turn the light off in the kitchen now"]
                    [rng.below(3) as usize],
                n: [1, 3, 9, 40][rng.below(4) as usize],
                leaves_after: (rng.below(6) == 0).then(|| rng.below(30)),
                is_deaf: rng.below(40) == 0,
                deadline: now + if rng.below(20) == 0 { Duration::from_millis(rng.below(3000)) } else { TIMEOUT },
                slot: (rng.below(12) == 0).then(|| rng.below(N_SLOTS as u64) as usize),
                keeps: rng.below(8) > 0,
            };
            let (reply, reader) = mailbox();
            let id = n_came as u64;
            core.take(Job { id, work: work(&writer, wish), reply, arrived: now, deadline: wish.deadline });
            clients.insert(id, Client { wish, reader, came: n_steps });
            n_came += 1;
        }
        micros.fetch_add(rng.below(40_000), Ordering::SeqCst);
        core.step();
        n_steps += 1;
        let ended = core.take_ended();
        n_ended += ended;
        // Who went before the step has nothing in it any more.
        let is_there = |id: &u64| core.running.iter().chain(&core.waiting).any(|task| task.id == *id);
        assert!(!gone.drain(..).any(|id| is_there(&id)), "a request outlives its client");

        // What is promised and kept fits, and slots are given in the order in which requests came, but to those that want one of
        // their own choice.
        let promised: usize = core.running.iter().map(|task| task.promised).sum();
        let kept = core.kept_bytes(N_SLOTS);
        assert!(promised + kept <= most && core.running.len() <= N_SLOTS, "{promised} and {kept} of {most}");
        let places: BTreeSet<usize> = core.running.iter().map(|task| task.i_slot).collect();
        assert_eq!(places.len(), core.running.len(), "two requests in a slot");
        let newest = core.running.iter().filter(|task| is_flexible(task)).map(|task| task.id).max();
        last_admitted = newest.max(last_admitted);
        if let (Some(newest), Some(first)) = (last_admitted, core.waiting.iter().find(|task| is_flexible(task))) {
            assert!(first.id > newest, "{} waits, {newest} came later and was served", first.id);
        }

        let ids: Vec<u64> = clients.keys().copied().collect();
        for id in ids {
            let client = clients.get_mut(&id).unwrap();
            if client.wish.leaves_after.is_some_and(|n| n_steps >= client.came + n) {
                clients.remove(&id);
                gone.push(id);
                n_left += 1;
                continue;
            }
            // A stream that nobody reads ends without a word; whoever is deaf looks when it is all over.
            let is_there = core.waiting.iter().chain(&core.running).any(|task| task.id == id);
            if client.wish.is_deaf && is_there {
                continue;
            }
            let Some(seen) = read(&mut client.reader) else { continue };
            match seen {
                Some(Seen::Done(ids)) => {
                    n_done += 1;
                    let key = (client.wish.prompt, client.wish.n);
                    assert_eq!(ids.len(), key.1);
                    assert_eq!(*answers.entry(key).or_insert_with(|| ids.clone()), ids, "{key:?}");
                }
                Some(Seen::Failed(status)) => {
                    assert!(status == 504 && clock() >= client.wish.deadline, "{status}");
                    n_late += 1;
                }
                None => {
                    assert!(client.wish.is_deaf, "a request without an answer");
                    n_deaf += 1;
                }
            }
            // Nothing follows the end.
            assert_eq!(read(&mut client.reader), Some(None));
            clients.remove(&id);
        }
    }
    assert!(core.is_idle() && n_ended == n_jobs && !core.step());
    let reused = core.figures.lock().reused_tokens;
    assert!(reused > 1000, "{reused} tokens were in memory already");
    (0..N_SLOTS).for_each(|place| {
        core.scheduler.forget(place);
    });
    let memory = core.scheduler.session().memory();
    assert_eq!((memory.n_free(), memory.checkpoint_bytes()), (N_SLOTS, 0));
    assert!(
        n_done > n_jobs / 2 && n_late > n_jobs / 200 && n_left > n_jobs / 20,
        "{n_done} done, {n_late} late, {n_left} left, {n_deaf} deaf"
    );
    // By themselves they are answered the same.
    for ((prompt, n), want) in answers {
        let (reply, mut reader) = mailbox();
        let wish =
            Wish { prompt, n, leaves_after: None, is_deaf: false, deadline: Duration::MAX, slot: None, keeps: false };
        probe.take(Job { id: 0, work: work(&writer, wish), reply, arrived: clock(), deadline: wish.deadline });
        while probe.step() {}
        assert_eq!(read(&mut reader), Some(Some(Seen::Done(want))), "{prompt}, {n}");
    }
}

#[test]
fn a_clip_whose_client_went_is_encoded_no_further() {
    let model = model("tiny-qwen3-asr");
    let listener = Arc::new(Listener::open(&model).unwrap());
    let encoder = model.model.encoder().unwrap();
    let figures = Arc::new(Figures::default());
    let options = CoreOptions { audio_cache_bytes: 1 << 20, ..core_options() };
    let clock: Clock = Arc::new(|| Duration::ZERO);
    let mut core = Core::new(scheduler(&model), options, clock, Arc::clone(&figures));
    // 16 s in one segment, of two slices.
    let samples = vec![0.1; 16 * 16_000];
    let request = transcribe::Request { segment_s: Some(0.0), ..transcribe::Request::default() };
    let transcription = listener.begin(samples, &request).unwrap();
    let features = listener.features(transcription.segment().unwrap(), &Serial).unwrap();
    assert_eq!(features.n_frames, 2 * encoder.window_frames.unwrap());
    let work = SpeechWork::new(transcription, [Clip::new(features)].into(), 240).in_slices(encoder.window_frames);
    let (reply, reader) = mailbox();
    let work = Work::Speech(Box::new(work));
    core.take(Job { id: 0, work, reply, arrived: Duration::ZERO, deadline: Duration::MAX });
    assert!(core.step() && figures.lock().n_encode == 1);
    drop(reader);
    assert!(!core.step() && core.is_idle());
    // Nothing of it is kept, and nothing of it runs.
    let numbers = figures.lock();
    assert_eq!((numbers.n_encode, numbers.audio_cache.bytes), (1, 0));
    assert_eq!(core.scheduler.session().memory().n_free(), N_SLOTS);
}
