// A transcript as files. Segments are {start, end, text}, times in seconds.

const clock = (seconds, separator) => {
    const ms = Math.round(seconds * 1000);
    const pad = (n, width) => String(n).padStart(width, "0");
    const [h, m, s] = [Math.floor(ms / 3600000), Math.floor(ms / 60000) % 60, Math.floor(ms / 1000) % 60];
    return `${pad(h, 2)}:${pad(m, 2)}:${pad(s, 2)}${separator}${pad(ms % 1000, 3)}`;
};

const times = ({ start, end }, separator) => `${clock(start, separator)} --> ${clock(end, separator)}`;
const said = (segments) => segments.filter((segment) => segment.text.trim());

export const asText = (segments) => said(segments).map((segment) => `${segment.text}\n`).join("");

export const asSrt = (segments) => said(segments)
    .map((segment, i) => `${i + 1}\n${times(segment, ",")}\n${segment.text.replaceAll("-->", "->")}\n\n`).join("");

export const asVtt = (segments) => `WEBVTT\n\n${said(segments).map((segment) => {
    const text = segment.text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
    return `${times(segment, ".")}\n${text}\n\n`;
}).join("")}`;

export const asJson = (segments) => `${JSON.stringify({ text: said(segments).map((s) => s.text).join(" "), segments }, null, 2)}\n`;
