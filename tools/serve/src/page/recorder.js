// A microphone as WAV files: cut in pauses, or at 20 s.

const MAX_S = 20;
const MIN_S = 1;
const PAUSE_S = 0.6;
// Quieter than this is a pause: 1 % of the largest amplitude.
const QUIET = 0.01;

// 16-bit mono PCM. Source: Microsoft, "Multimedia Programming Interface and Data Specifications 1.0", RIFF WAVE.
export const wav = (parts, rate) => {
    const n = parts.reduce((sum, part) => sum + part.length, 0);
    const bytes = new DataView(new ArrayBuffer(44 + 2 * n));
    const ascii = (at, text) => [...text].forEach((c, i) => bytes.setUint8(at + i, c.charCodeAt(0)));
    ascii(0, "RIFF");
    bytes.setUint32(4, 36 + 2 * n, true);
    ascii(8, "WAVEfmt ");
    bytes.setUint32(16, 16, true);
    bytes.setUint16(20, 1, true);
    bytes.setUint16(22, 1, true);
    bytes.setUint32(24, rate, true);
    bytes.setUint32(28, 2 * rate, true);
    bytes.setUint16(32, 2, true);
    bytes.setUint16(34, 16, true);
    ascii(36, "data");
    bytes.setUint32(40, 2 * n, true);
    let at = 44;
    for (const part of parts) {
        for (const sample of part) {
            bytes.setInt16(at, sample, true);
            at += 2;
        }
    }
    return new Blob([bytes], { type: "audio/wav" });
};

export class Recorder {
    static isPossible() {
        return window.isSecureContext && Boolean(navigator.mediaDevices?.getUserMedia) && "AudioWorkletNode" in window;
    }

    constructor() {
        this.onpiece = () => {};
        this.all = [];
        this.piece = [];
        this.pieceSamples = 0;
        this.quietSamples = 0;
        this.hasSound = false;
        this.sent = 0;
    }

    async start() {
        this.stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
        this.context = new AudioContext();
        await this.context.audioWorklet.addModule("/page/worklet.js");
        this.node = new AudioWorkletNode(this.context, "pcm");
        this.node.port.onmessage = ({ data }) => (data === "end" ? this.ended?.() : this.take(data));
        this.context.createMediaStreamSource(this.stream).connect(this.node);
    }

    take(samples) {
        const rate = this.context.sampleRate;
        this.all.push(samples);
        this.piece.push(samples);
        this.pieceSamples += samples.length;
        const loudest = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0) / 32768;
        if (loudest < QUIET) {
            this.quietSamples += samples.length;
        } else {
            this.quietSamples = 0;
            this.hasSound = true;
        }
        const [piece, quiet] = [this.pieceSamples / rate, this.quietSamples / rate];
        if (piece >= MAX_S || (this.hasSound && piece >= MIN_S && quiet >= PAUSE_S)) this.cut();
    }

    cut() {
        const { piece, pieceSamples, hasSound, sent } = this;
        const rate = this.context.sampleRate;
        this.sent += pieceSamples;
        [this.piece, this.pieceSamples, this.quietSamples, this.hasSound] = [[], 0, 0, false];
        // Where nothing was said there is nothing to hear.
        if (hasSound) this.onpiece(wav(piece, rate), sent / rate);
    }

    // Ends the recording, and gives all of it.
    async stop() {
        const rate = this.context.sampleRate;
        const ended = new Promise((resolve) => { this.ended = resolve; });
        this.node.port.postMessage("end");
        await ended;
        this.stream.getTracks().forEach((track) => track.stop());
        this.cut();
        await this.context.close();
        return wav(this.all, rate);
    }
}
