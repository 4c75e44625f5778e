// The page: what its controls do. Text from the server is put in as text, never as HTML.

import { transcribe, models } from "/page/server.js";
import { Recorder } from "/page/recorder.js";
import { asJson, asSrt, asText, asVtt } from "/page/formats.js";

const element = (id) => document.getElementById(id);
const state = { segments: [], name: "recording", url: null, recorder: null, queue: Promise.resolve(), running: null };

const say = (text) => { element("status").textContent = text; };

const fail = (error) => {
    const box = element("error");
    box.textContent = error.message;
    box.hidden = false;
    if (error.status === 401) {
        element("keyfield").hidden = false;
        element("key").focus();
    }
};

const clock = (seconds) => {
    const whole = Math.floor(seconds);
    return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
};

// A button for each segment, which plays it.
const show = () => {
    const list = element("segments");
    list.replaceChildren(...state.segments.map((segment) => {
        const item = document.createElement("li");
        const button = document.createElement("button");
        button.type = "button";
        const time = document.createElement("time");
        time.textContent = clock(segment.start);
        const text = document.createElement("span");
        text.textContent = segment.text || "...";
        button.append(time, text);
        button.addEventListener("click", () => {
            const player = element("player");
            player.currentTime = segment.start;
            player.play().catch(() => {});
        });
        item.append(button);
        return item;
    }));
    element("result").hidden = state.segments.length === 0;
};

const follow = () => {
    const now = element("player").currentTime;
    const buttons = element("segments").querySelectorAll("button");
    state.segments.forEach((segment, i) => {
        const isHere = now >= segment.start && now < segment.end;
        buttons[i]?.setAttribute("aria-current", String(isHere));
    });
};

const begin = (blob, name) => {
    if (state.url) URL.revokeObjectURL(state.url);
    state.url = URL.createObjectURL(blob);
    state.name = name.replace(/\.[^.]*$/, "") || "recording";
    element("player").src = state.url;
    element("error").hidden = true;
};

const fields = () => ({
    language: element("language").value.trim(),
    prompt: element("context").value.trim(),
    key: element("key").value,
});

// Adds what is said in a recording that begins so many seconds after the first one.
const hear = async (blob, name, offset, signal) => {
    const before = state.segments.slice();
    const partial = { start: offset, end: offset, text: "" };
    const segments = await transcribe(blob, name, fields(), signal, (delta, start) => {
        if (offset + start > partial.start && partial.text) {
            before.push({ ...partial, end: offset + start });
            partial.start = offset + start;
            partial.text = "";
        }
        partial.text += delta;
        state.segments = [...before, partial];
        show();
    });
    const kept = state.segments.slice(0, before.length).filter((segment) => segment.start < offset);
    state.segments = [...kept, ...segments.map((segment) => ({
        start: segment.start + offset, end: segment.end + offset, text: segment.text,
    }))];
    show();
};

const pick = async (file) => {
    if (!file) return;
    state.running?.abort();
    state.running = new AbortController();
    state.segments = [];
    show();
    begin(file, file.name);
    say(`Transcribing ${file.name}`);
    try {
        await hear(file, file.name, 0, state.running.signal);
        say("Done");
    } catch (error) {
        if (error.name === "AbortError") return;
        say("");
        fail(error);
    }
};

const speak = async () => {
    element("error").hidden = true;
    state.running?.abort();
    state.segments = [];
    show();
    const recorder = new Recorder();
    state.queue = Promise.resolve();
    recorder.onpiece = (blob, start) => {
        // In order: the text of one piece stands before that of the next.
        state.queue = state.queue.then(() => hear(blob, "speech.wav", start)).catch(fail);
    };
    try {
        await recorder.start();
    } catch (error) {
        fail(new Error(`No microphone: ${error.message}`));
        return;
    }
    state.recorder = recorder;
    element("speak").setAttribute("aria-pressed", "true");
    element("stop").hidden = false;
    element("stop").focus();
    say("Listening");
};

const hush = async () => {
    const recorder = state.recorder;
    if (!recorder) return;
    state.recorder = null;
    element("speak").setAttribute("aria-pressed", "false");
    element("stop").hidden = true;
    element("speak").focus();
    say("Transcribing");
    const whole = await recorder.stop();
    begin(whole, "speech.wav");
    await state.queue;
    say("Done");
};

const save = (format) => {
    const write = { txt: asText, srt: asSrt, vtt: asVtt, json: asJson }[format];
    const type = format === "json" ? "application/json" : "text/plain";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([write(state.segments)], { type }));
    link.download = `${state.name}.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};

element("file").addEventListener("change", (event) => pick(event.target.files[0]));
element("ask").addEventListener("submit", (event) => event.preventDefault());
element("speak").addEventListener("click", () => (state.recorder ? hush() : speak()));
element("stop").addEventListener("click", hush);
element("player").addEventListener("timeupdate", follow);
for (const button of element("downloads").querySelectorAll("button")) {
    button.addEventListener("click", () => save(button.dataset.format));
}

const drop = element("drop");
document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
});
document.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    pick(event.dataTransfer.files[0]);
});

if (!Recorder.isPossible()) {
    element("speak").disabled = true;
    element("microphone").hidden = false;
    element("microphone").textContent =
        "Browsers give a microphone to secure pages only: open this one as http://localhost, or over https.";
}
models().then((names) => { element("model").textContent = `Speech to text on this machine, with ${names.join(", ")}`; })
    .catch((error) => { if (error.status === 401) element("keyfield").hidden = false; });
