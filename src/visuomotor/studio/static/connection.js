// A WebSocket that comes back: lost connections are tried again, ever more slowly, until the page is left.

const FIRST = 500; // milliseconds
const LONGEST = 5000;

export class Connection {
  /**
   * @param {string} path where to connect to on this server
   * @param {{message: Function, state: Function}} hears `message` takes what comes, `state` how it stands: connecting,
   *   open or lost
   */
  constructor(path, hears) {
    this.address = `${location.protocol.replace("http", "ws")}//${location.host}${path}`;
    this.hears = hears;
    this.pause = FIRST;
    this.connect();
  }

  connect() {
    const socket = new WebSocket(this.address);
    this.socket = socket;
    this.hears.state(this.pause === FIRST ? "connecting" : "lost");
    socket.onopen = () => {
      this.pause = FIRST;
      this.hears.state("open");
    };
    socket.onmessage = (event) => this.hears.message(JSON.parse(event.data));
    socket.onclose = () => {
      if (this.closed) return;
      this.hears.state("lost");
      this.timer = setTimeout(() => this.connect(), this.pause);
      this.pause = Math.min(this.pause * 2, LONGEST);
    };
  }

  /** Sends a message; one that is sent while nobody listens is dropped. */
  send(type, content = {}) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type, ...content }));
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
    this.socket.close();
  }
}
