//! The two wires of an app-server, seen from its side.

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, SinkExt, StreamExt};
use optio_host::ExitStatus;
use optio_host::fake::FakeListener;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_util::sync::CancellationToken;

use super::FakeAgents;
use super::server::Server;

/// Accepts connections for ever.
pub(super) fn listen(
    server: Server,
    mut listener: FakeListener,
    agents: FakeAgents,
) -> BoxFuture<'static, ()> {
    async move {
        let mut connections = FuturesUnordered::new();
        loop {
            tokio::select! {
                stream = listener.accept() => {
                    let gone = agents.lock().clients.clone();
                    connections.push(serve(server.clone(), stream, gone));
                }
                Some(()) = connections.next() => {}
            }
        }
    }
    .boxed()
}

async fn serve(server: Server, stream: DuplexStream, gone: CancellationToken) {
    let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, as_codex_would).await else {
        return;
    };
    let (out, mut queue) = mpsc::unbounded_channel();
    let client = server.connected(out);
    let (mut sink, mut incoming) = socket.split();
    // A client that does not read must not keep the server from hearing it.
    let writing = async {
        while let Some(line) = queue.recv().await {
            if sink.send(Message::text(line)).await.is_err() {
                return;
            }
        }
    };
    let reading = async {
        while let Some(Ok(message)) = incoming.next().await {
            if let Message::Text(text) = message {
                server.heard(client, &text);
            }
        }
    };
    tokio::select! {
        () = writing => {}
        () = reading => {}
        () = gone.cancelled() => {}
    }
    server.disconnected(client);
}

/// The real one closes the connection on either header (LAB §9).
#[allow(clippy::result_large_err, reason = "the library's own signature")]
fn as_codex_would(request: &Request, response: Response) -> Result<Response, ErrorResponse> {
    let unwanted = ["sec-websocket-extensions", "origin"];
    match unwanted.iter().find(|name| request.headers().contains_key(**name)) {
        Some(name) => Err(ErrorResponse::new(Some(format!("{name} is not taken")))),
        None => Ok(response),
    }
}

/// Talks on the program's own pipes until end-of-file, which ends it.
pub(super) fn over_pipes(
    server: Server,
    stdin: DuplexStream,
    mut stdout: DuplexStream,
    gone: CancellationToken,
    stays: bool,
) -> BoxFuture<'static, ()> {
    async move {
        let (out, mut queue) = mpsc::unbounded_channel::<String>();
        let client = server.connected(out);
        let writing = async {
            while let Some(mut line) = queue.recv().await {
                line.push('\n');
                if stdout.write_all(line.as_bytes()).await.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        let reading = async {
            let mut lines = BufReader::new(stdin).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                server.heard(client, &line);
            }
        };
        tokio::select! {
            () = writing => {}
            () = reading => {}
            () = gone.cancelled() => {}
        }
        server.disconnected(client);
        if !stays {
            server.exit(ExitStatus::Code(0), "");
        }
    }
    .boxed()
}
