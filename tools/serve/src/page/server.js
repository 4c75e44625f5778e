// Asking the server: a recording goes there, its text comes back as it is decoded.

const refused = async (response) => {
    let message = `${response.status} ${response.statusText}`;
    try {
        message = (await response.json()).error.message;
    } catch {
        // Whatever answered was not this server.
    }
    return Object.assign(new Error(message), { status: response.status });
};

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

// Documents of an event stream, as they come.
export async function* events(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        text += value;
        const blocks = text.split("\n\n");
        text = blocks.pop();
        for (const block of blocks) {
            const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
            if (data.length > 0 && data[0] !== "[DONE]") yield JSON.parse(data.join("\n"));
        }
    }
}

// The segments of a recording. `grow` is called with more of the text, and where in seconds the segment begins that it is in.
export const transcribe = async (blob, name, { language, prompt, key }, signal, grow) => {
    const form = new FormData();
    if (language) form.append("language", language);
    if (prompt) form.append("prompt", prompt);
    form.append("response_format", "streaming_verbose_json");
    form.append("file", blob, name);
    const response = await fetch("/v1/audio/transcriptions", { method: "POST", body: form, headers: headers(key), signal });
    if (!response.ok) throw await refused(response);
    for await (const event of events(response.body)) {
        if (event.error) throw new Error(event.error.message);
        if (event.done) return event.segments;
        grow(event.token, event.audio_ms / 1000);
    }
    throw new Error("The answer broke off.");
};

export const models = async (key) => {
    const response = await fetch("/v1/models", { headers: headers(key) });
    if (!response.ok) throw await refused(response);
    return (await response.json()).data.map((model) => model.id);
};
