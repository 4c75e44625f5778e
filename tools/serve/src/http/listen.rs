//! [`serve`]: connections, from the first to the last.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tower::ServiceExt;

use super::guard::LocalAddress;
use super::linger::linger;
use super::router::router;
use crate::App;
use crate::work::EngineThread;

/// How often it is looked whether to stop.
const INTERVAL: Duration = Duration::from_millis(50);
/// Time for answers to reach their clients once all of them are there.
const LAST: Duration = Duration::from_secs(2);
/// Bytes of a request's head.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Headers of a request.
const MAX_HEADERS: usize = 64;
/// Connections that are at their end at once: whose clients may still read the last answer, which for those that are too many
/// says so. Beyond these they are closed at once.
const MAX_ENDING: usize = 64;
/// The answer to a connection that is one too many.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\
connection: close\r\n\r\n{\"error\":{\"code\":503,\"message\":\"too many connections\",\"type\":\"unavailable_error\",\"param\":null   }}";

/// Why a server has stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// It was asked to, and everything was answered.
    Asked,
    /// It was asked to, and what was not answered in time got an error.
    Late,
    /// The engine thread has died.
    Died,
}

/// Answers connections until `is_stopped`, and then what was asked by then.
pub(crate) fn serve(
    app: &Arc<App>,
    engine: EngineThread,
    listener: std::net::TcpListener,
    is_stopped: &(dyn Fn() -> bool + Send + Sync),
) -> std::io::Result<Stopped> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(app.options.threads_http)
        .max_blocking_threads(app.options.threads_http)
        .thread_name("http")
        .enable_all()
        .build()?;
    listener.set_nonblocking(true)?;
    let stopped = runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        Ok::<_, std::io::Error>(accept(app, &engine, listener, is_stopped).await)
    });
    // Threads that still decode a recording are not waited for.
    runtime.shutdown_background();
    match stopped? {
        Stopped::Died => Ok(Stopped::Died),
        stopped => Ok(if engine.join() { stopped } else { Stopped::Died }),
    }
}

async fn accept(
    app: &Arc<App>,
    engine: &EngineThread,
    listener: TcpListener,
    is_stopped: &(dyn Fn() -> bool + Send + Sync),
) -> Stopped {
    let connections = Arc::new(Semaphore::new(app.options.max_connections));
    let ending = Arc::new(Semaphore::new(MAX_ENDING));
    let (last, is_last) = watch::channel(false);
    let mut interval = tokio::time::interval(INTERVAL);
    let mut asked_at: Option<Instant> = None;
    let mut is_late = false;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Errors are those of a connection that has gone, or of a system that is short of files for a while.
                let Ok((stream, _)) = accepted else { continue };
                if let Ok(permit) = Arc::clone(&connections).try_acquire_owned() {
                    let ending = Arc::clone(&ending);
                    drop(tokio::spawn(connection(Arc::clone(app), stream, (permit, ending), is_last.clone())));
                } else if let Ok(permit) = Arc::clone(&ending).try_acquire_owned() {
                    drop(tokio::spawn(refuse(stream, permit)));
                }
            }
            _ = interval.tick() => {
                if app.inbox.is_dead() {
                    break;
                }
                match asked_at {
                    None if is_stopped() => {
                        app.is_draining.store(true, Ordering::SeqCst);
                        asked_at = Some(Instant::now());
                    }
                    None => {}
                    Some(_) if app.open_requests.load(Ordering::SeqCst) == 0 => break,
                    Some(at) if at.elapsed() >= app.options.shutdown_time && !is_late => {
                        is_late = true;
                        app.inbox.abort();
                    }
                    Some(at) if at.elapsed() >= app.options.shutdown_time + LAST => break,
                    Some(_) => {}
                }
            }
        }
    }
    app.inbox.close();
    let _ = last.send(true);
    let all = u32::try_from(app.options.max_connections).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(LAST, connections.acquire_many(all)).await;
    if !engine.is_finished() {
        // Nobody waits for an answer any more.
        app.inbox.abort();
    }
    match app.inbox.is_dead() {
        true => Stopped::Died,
        false if is_late => Stopped::Late,
        false => Stopped::Asked,
    }
}

/// One connection, request after request, until the client or the server ends it.
async fn connection(
    app: Arc<App>,
    stream: TcpStream,
    (permit, ending): (OwnedSemaphorePermit, Arc<Semaphore>),
    mut is_last: watch::Receiver<bool>,
) {
    let local = stream.local_addr().ok().map(|address: SocketAddr| LocalAddress(address.ip().to_canonical()));
    let _ = stream.set_nodelay(true);
    let router = router(&app);
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        if let Some(local) = local {
            request.extensions_mut().insert(local);
        }
        let router = router.clone();
        Box::pin(
            async move { Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|never| match never {})) },
        )
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(app.options.header_time)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    // It changes once, when no more requests are to come.
    let is_over = tokio::select! {
        _ = poll_fn(|cx| connection.poll_without_shutdown(cx)) => true,
        _ = is_last.changed() => false,
    };
    if is_over {
        // Whoever sees the end may connect again.
        drop(permit);
        if let Ok(_permit) = ending.try_acquire() {
            linger(connection.into_parts().io.into_inner()).await;
        }
    } else {
        let mut connection = std::pin::pin!(connection);
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

/// Says that there are too many connections.
async fn refuse(mut stream: TcpStream, permit: OwnedSemaphorePermit) {
    if tokio::time::timeout(Duration::from_secs(1), stream.write_all(FULL)).await.is_ok_and(|written| written.is_ok()) {
        linger(stream).await;
    }
    drop(permit);
}
