// Usage: node eventsource.mjs URL [own-lines]
import { EventSource } from "eventsource";

import { listen } from "./listen.mjs";

const [url, ownLines] = process.argv.slice(2);
listen(new EventSource(url), ownLines, (report) => console.log(JSON.stringify(report)));
