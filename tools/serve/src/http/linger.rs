//! [`linger`]: the end of a connection whose client may still be sending.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A client that sends nothing for so long has read what it wanted to read.
const SILENCE: Duration = Duration::from_secs(1);
/// A client that sends for longer than this after its answer does not read.
const LONGEST: Duration = Duration::from_secs(5);
/// Bytes that are read, and thrown away, at once.
const PIECE_BYTES: usize = 16 << 10;

/// Closes a connection once its client has, so that the client reads the last answer.
///
/// A socket that is closed before everything was read from it resets the connection, and a reset takes away from the client what
/// it has not read yet: the reason why its upload is refused, say. So what still comes is read and thrown away, until the
/// client closes, says nothing for a second, or has sent for five. Source: RFC 9112, section 9.6.
pub(super) async fn linger(mut stream: TcpStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let rest = async {
        let mut piece = vec![0; PIECE_BYTES];
        while let Ok(Ok(1..)) = timeout(SILENCE, stream.read(&mut piece)).await {}
    };
    let _ = timeout(LONGEST, rest).await;
}
