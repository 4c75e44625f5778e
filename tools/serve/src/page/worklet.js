// In the audio thread: samples as 16-bit PCM, a tenth of a second at a time.

class Pcm extends AudioWorkletProcessor {
    constructor() {
        super();
        this.n = 0;
        this.buffer = new Int16Array(Math.round(sampleRate / 10));
        this.isOver = false;
        this.port.onmessage = () => {
            this.port.postMessage(this.buffer.slice(0, this.n));
            this.port.postMessage("end");
            this.isOver = true;
        };
    }

    process([[channel]]) {
        for (const sample of channel ?? []) {
            this.buffer[this.n] = Math.round(Math.max(-1, Math.min(1, sample)) * 32767);
            this.n += 1;
            if (this.n === this.buffer.length) {
                this.port.postMessage(this.buffer.slice());
                this.n = 0;
            }
        }
        return !this.isOver;
    }
}

registerProcessor("pcm", Pcm);
